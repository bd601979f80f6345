"""When, what next, and the service that runs one queue."""
