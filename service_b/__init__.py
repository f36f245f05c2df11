"""Service B: the asynchronous facade in front of service A."""
