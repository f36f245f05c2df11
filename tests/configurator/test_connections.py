"""What service A sees of its caller's connections: a call given up is a reset, a call answered an end as usual."""

import asyncio
import math
import ssl
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from configurator.service_a import ServiceA
from messaging.messages import OutcomeKind
from tests.configurator.calls import make_job
from tests.fake_a import FakeA, answer

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
ANSWER = b'{"code":200,"message":"ok"}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(ANSWER)

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listener:
    """A server that says these bytes to a request, and tells how its connection ended."""

    def __init__(self, says: bytes = b"", hangs_up: bool = False) -> None:
        self._says = says
        self._hangs_up = hangs_up
        self.requested = asyncio.Event()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve(self, tls: ssl.SSLContext | None = None) -> tuple[asyncio.Server, str]:
        """Listen."""
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, ssl=tls)
        return server, f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"}")
            writer.write(self._says)
            if self._hangs_up:
                writer.write_eof()
            self.requested.set()
            while await reader.read(1000):
                pass
            self.ended.set_result("end")
        except ConnectionResetError:
            self.ended.set_result("reset")
        finally:
            writer.close()


async def how_it_ends(says: bytes, hangs_up: bool, kind: OutcomeKind, limit: float) -> str:
    listener = Listener(says, hangs_up)
    server, url = await listener.serve()
    async with server:
        async with ServiceA(url) as service_a:
            assert (await service_a.configure(make_job(limit=limit))).kind is kind
        return await listener.ended


GIVEN_UP = {
    "silence": (b"", False),
    "half a head": (HEAD, False),
    "half an answer": (HEAD + b"\r\n" + ANSWER[:5], False),
    "an interim answer": (b"HTTP/1.1 100 Continue\r\n\r\n", False),
    "garbage": (b"\x16\x03 garbage\r\n\r\n", False),
    "more than an answer": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(100_000), False),
}
ANSWERED = {
    "kept": (HEAD + b"\r\n" + ANSWER, False),
    "to be closed": (HEAD + b"Connection: close\r\n\r\n" + ANSWER, False),
    "hung up": (HEAD + b"\r\n" + ANSWER, True),
    "until the end": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + ANSWER, True),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_call_that_is_given_up_is_reset(loop: str) -> None:
    """All at once: the limit must be long enough for a busy machine to reach its server."""

    async def end_all() -> list[str]:
        return await asyncio.gather(*(how_it_ends(*says, OutcomeKind.UNKNOWN, 2) for says in GIVEN_UP.values()))

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        assert dict(zip(GIVEN_UP, runner.run(end_all()), strict=True)) == dict.fromkeys(GIVEN_UP, "reset")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ANSWERED)
def test_a_call_that_is_answered_ends_as_usual(loop: str, name: str) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        assert runner.run(how_it_ends(*ANSWERED[name], OutcomeKind.SUCCESS, 60)) == "end"


async def test_a_call_that_is_cancelled_is_reset() -> None:
    listener = Listener()
    server, url = await listener.serve()
    async with server, ServiceA(url) as service_a:
        call = asyncio.create_task(service_a.configure(make_job()))
        await listener.requested.wait()
        call.cancel()
        assert await listener.ended == "reset"


async def test_a_kept_connection_is_used_again_and_reset_when_that_call_is_given_up() -> None:
    async with FakeA() as fake_a, ServiceA(fake_a.url) as service_a:
        assert (await service_a.configure(make_job())).kind is OutcomeKind.SUCCESS
        fake_a.default = answer(delay=60)
        assert (await service_a.configure(make_job(limit=0.3))).kind is OutcomeKind.UNKNOWN
        fake_a.default = answer()
        assert (await service_a.configure(make_job())).kind is OutcomeKind.SUCCESS


async def test_a_slow_a_that_has_been_reached_is_waited_for() -> None:
    async with FakeA(delay=2) as fake_a, ServiceA(fake_a.url, reach_seconds=0.5) as service_a:
        assert (await service_a.configure(make_job())).kind is OutcomeKind.SUCCESS


@pytest.mark.parametrize("limit", [4.3, 5.5, 60.3, 89.7])
async def test_a_limit_is_no_whole_number_of_seconds(limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp ends what is over 5 s at a whole second of the loop's time, up to a second late."""
    loop = asyncio.get_running_loop()
    timers: list[float] = []
    call_at = loop.call_at

    def noted(when: float, *arguments: object, **options: object) -> asyncio.TimerHandle:
        timers.append(when)
        return call_at(when, *arguments, **options)  # type: ignore[arg-type]

    async with FakeA() as fake_a, ServiceA(fake_a.url) as service_a:
        monkeypatch.setattr(loop, "call_at", noted)
        earliest = loop.time() + limit
        assert (await service_a.configure(make_job(limit=limit))).kind is OutcomeKind.SUCCESS
        latest = loop.time() + limit
    assert [when for when in timers if earliest <= when <= latest and not math.isclose(when, round(when))]
