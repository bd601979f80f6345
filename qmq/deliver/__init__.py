"""To the next host: destinations, MX, SMTP, LMTP, QMTP."""
