"""Durable stores of queues: SQLite and memory, one conformance suite."""
