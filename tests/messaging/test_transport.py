"""Writing past aiormq."""

from messaging.transport import Transport


async def test_nothing_is_written_before_a_connection_is_there() -> None:
    assert not Transport().write(b"frame")
