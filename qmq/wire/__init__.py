"""Bytes to events and back: no Twisted, no clock, no file."""
