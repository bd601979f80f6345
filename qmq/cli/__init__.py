"""The qmq command."""
