"""The command line of the API, `python -m service_b.client`: what an integrator does, at a terminal or in a script.

It plays a client's part and imports nothing of ours: what it can do, anybody can who reads `/openapi.json`.
"""
