"""SPF, RFC 7208: may this client send mail of this domain? Asks DNS, waits without blocking, decides nothing."""
