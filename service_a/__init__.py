"""A stub of service A, the slow synchronous configurator: somebody else's system, so no code of ours is in it."""
