"""How our processes talk: wire messages, topology, the AMQP session."""
