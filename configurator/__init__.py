"""The configurator: N asyncio consumers in one process, between RabbitMQ and service A. Keeps nothing."""
