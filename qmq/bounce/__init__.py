"""What cannot be delivered goes back: RFC 3464 reports, and their hand-over."""
