"""The client of service A by TLS: whom it talks to, whom it does not, and that a call given up is reset there, too."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from configurator.service_a import ServiceA
from messaging.messages import OutcomeKind
from runtime.tls import Reloading, client_context, server_context
from tests.certificates import Authority, Pair, files
from tests.configurator.calls import make_job
from tests.configurator.test_connections import ANSWER, HEAD, LOOPS, Listener
from tests.conftest import eventually
from tests.fake_a import FakeA

LOOK_SECONDS = 0.05


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def trusting(authority: Authority, pair: Pair | None = None) -> Reloading:
    return Reloading(client_context, files(pair, authority.file), look_seconds=LOOK_SECONDS)


@asynccontextmanager
async def calling(fake_a: FakeA, tls: Reloading | None) -> AsyncIterator[ServiceA]:
    """A client that looks after its connection and its files."""
    async with ServiceA(fake_a.url, tls, probe_seconds=0.05) as service_a:
        watches = [asyncio.create_task(service_a.watch()), *([asyncio.create_task(tls.watch())] if tls else [])]
        yield service_a
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def test_a_trusted_a_is_called_and_sees_our_certificate(authority: Authority) -> None:
    tls = server_context(files(authority.issue(), authority.file))
    async with FakeA(tls=tls) as fake_a, calling(fake_a, trusting(authority, authority.issue("us"))) as service_a:
        for _ in range(3):
            assert (await service_a.configure(make_job())).kind is OutcomeKind.SUCCESS
        assert service_a.unready is None


def _another(authority: Authority, folder: Path) -> Reloading:
    return trusting(Authority(folder))


def _the_systems(authority: Authority, folder: Path) -> Reloading:
    return Reloading(client_context, files())


def _this(authority: Authority, folder: Path) -> Reloading:
    return trusting(authority)


Trust = Callable[[Authority, Path], Reloading]
DISTRUSTED: dict[str, tuple[Callable[[Authority], Pair], Trust, str]] = {
    "another CA": (lambda ca: ca.issue(), _another, "unable to get local issuer certificate"),
    "none of the system's": (lambda ca: ca.issue(), _the_systems, "unable to get local issuer certificate"),
    "expired": (lambda ca: ca.issue(expired=True), _this, "certificate has expired"),
    "another name": (lambda ca: ca.issue("localhost"), _this, "IP address mismatch"),
}


@pytest.mark.parametrize("name", DISTRUSTED)
async def test_an_a_that_is_not_trusted_gets_no_request_and_no_more_work_is_taken(
    name: str, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, trust, why = DISTRUSTED[name]
    tls = server_context(files(make(authority)))
    async with FakeA(tls=tls) as fake_a, calling(fake_a, trust(authority, tmp_path)) as service_a:
        probe, probed = service_a._probe, list[bool]()

        async def noted() -> bool:
            probed.append(await probe())
            return probed[-1]

        monkeypatch.setattr(service_a, "_probe", noted)
        with capture_logs() as logs:
            outcome = await service_a.configure(make_job())
            await eventually(lambda: len(probed) > 2)
        assert outcome.kind is OutcomeKind.UNAVAILABLE
        assert outcome.reason.startswith("service A cannot be reached: ")
        assert why in outcome.reason
        assert not fake_a.ledger
        assert not any(probed)
        assert not service_a.reachable.is_set()
        assert service_a.unready
        assert why in service_a.unready
        assert (logs[0]["event"], why in logs[0]["tls"]) == ("service_a.unreachable", True)


async def test_an_a_that_speaks_no_tls_gets_no_request(authority: Authority) -> None:
    async with FakeA() as fake_a:
        async with ServiceA(fake_a.url.replace("http:", "https:"), trusting(authority)) as service_a:
            outcome = await service_a.configure(make_job())
        assert (outcome.kind, outcome.reason) == (
            OutcomeKind.UNAVAILABLE,
            "service A cannot be reached: WRONG_VERSION_NUMBER",
        )
        assert not fake_a.ledger


async def test_a_new_ca_on_disk_makes_a_reachable_again(authority: Authority, tmp_path: Path) -> None:
    mistaken = Authority(tmp_path)
    tls = server_context(files(authority.issue()))
    async with FakeA(tls=tls) as fake_a, calling(fake_a, trusting(mistaken)) as service_a:
        assert (await service_a.configure(make_job())).kind is OutcomeKind.UNAVAILABLE
        mistaken.file.write_bytes(authority.file.read_bytes())
        await eventually(service_a.reachable.is_set)
        assert (await service_a.configure(make_job())).kind is OutcomeKind.SUCCESS
        assert service_a.unready is None


@pytest.fixture
def strict(authority: Authority) -> Iterator[int]:
    """A server that asks for certificates and tells by an alert, as most do (asyncio's sends none); its port."""
    context = server_context(files(authority.issue(), authority.file))
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                accepted, _ = listening.accept()
            except OSError:
                return
            shaking = context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
            with suppress(OSError):
                shaking.do_handshake()
            # Closed with something unread, the connection would be reset, and the alert lost on its way.
            with suppress(OSError), socket.socket(fileno=shaking.detach()) as told:
                told.shutdown(socket.SHUT_WR)
                while told.recv(4096):
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_an_a_that_does_not_take_us_was_not_reached(
    strict: int, authority: Authority, version: ssl.TLSVersion
) -> None:
    tls = trusting(authority)
    tls.context.maximum_version = version
    async with ServiceA(f"https://127.0.0.1:{strict}", tls) as service_a:
        outcome = await service_a.configure(make_job())
    assert outcome.kind is OutcomeKind.UNAVAILABLE
    assert "_ALERT_" in outcome.reason


def how_it_ends(loop: str, authority: Authority, says: bytes, kind: OutcomeKind, limit: float) -> str:
    """Call a server that says this, and tell how its connection ended."""

    async def call() -> str:
        listener = Listener(says)
        server, url = await listener.serve(server_context(files(authority.issue())))
        async with server:
            async with ServiceA(url, trusting(authority)) as service_a:
                assert (await service_a.configure(make_job(limit=limit))).kind is kind
            return await listener.ended

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(call())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_call_that_is_given_up_is_reset(loop: str, authority: Authority) -> None:
    assert how_it_ends(loop, authority, HEAD, OutcomeKind.UNKNOWN, 2) == "reset"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_call_that_is_answered_ends_as_usual(loop: str, authority: Authority) -> None:
    assert how_it_ends(loop, authority, HEAD + b"\r\n" + ANSWER, OutcomeKind.SUCCESS, 60) == "end"
