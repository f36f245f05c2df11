"""The tasks: all of their SQL."""
