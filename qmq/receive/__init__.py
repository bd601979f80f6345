"""From the client to the router: dialogue, policy, draft, trace fields; ESMTP and QMTP."""
