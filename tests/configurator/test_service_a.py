"""The client of service A: each kind of answer is one outcome, and A gets what the device's client wrote."""

import gzip
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import ClientResponse, web
from aiohttp.connector import Connection
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from configurator.connections import Request
from configurator.jobs import LATENESS_SECONDS
from configurator.service_a import ServiceA
from configurator.silence import SILENT_ENDS
from messaging.messages import OutcomeKind
from tests.configurator.calls import LIMIT, make_job
from tests.fake_a import Behaviour, FakeA, answer, reset, silence


@pytest.fixture
async def service_a(fake_a: FakeA) -> AsyncIterator[ServiceA]:
    """The client."""
    async with ServiceA(fake_a.url) as made:
        yield made


def _raw(data: bytes) -> Behaviour:
    """Say something that is not HTTP, or half of it, and hang up."""

    async def behave(fake: FakeA, request: web.Request) -> web.StreamResponse:
        assert request.transport
        request.transport.write(data)
        request.transport.close()
        return web.Response()

    return behave


def _compressed(message: str = "success") -> Behaviour:
    """Answer as a proxy that compresses, whatever it is asked for."""

    async def behave(fake: FakeA, request: web.Request) -> web.StreamResponse:
        assert request.headers["Accept-Encoding"] == "identity"
        body = gzip.compress(json.dumps({"code": 200, "message": message}).encode())
        return web.Response(body=body, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})

    return behave


HTML_404 = "<html><body><h1>404 Not Found</h1></body></html>"
LOST = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 32\r\n\r\n{"code":200,'

ANSWERS: dict[str, tuple[Behaviour, OutcomeKind, str]] = {
    "success": (answer(200), OutcomeKind.SUCCESS, "200 as told"),
    "not found": (answer(404), OutcomeKind.NOT_FOUND, "404 as told"),
    "failed": (answer(500), OutcomeKind.FAILED, "500 as told"),
    "malformed": (
        answer(400, '{"code":400,"message":"vlan is odd"}'),
        OutcomeKind.REJECTED,
        "400 vlan is odd",
    ),
    "invalid": (answer(422, '{"code":422,"message":"no such vlan"}'), OutcomeKind.REJECTED, "422 no such vlan"),
    "unavailable": (answer(503), OutcomeKind.UNAVAILABLE, "service A answered 503"),
    "unavailable, says a proxy": (answer(503, "busy"), OutcomeKind.UNAVAILABLE, "service A answered 503"),
    "too many": (answer(429), OutcomeKind.UNAVAILABLE, "service A answered 429"),
    "garbage body": (answer(200, "\x00{]"), OutcomeKind.UNKNOWN, "not an answer of service A: HTTP 200"),
    "empty body": (answer(200, ""), OutcomeKind.UNKNOWN, "not an answer of service A: HTTP 200"),
    "another code": (answer(200, '{"code":500}'), OutcomeKind.UNKNOWN, "not an answer of service A: HTTP 200"),
    "a proxy's 404": (answer(404, HTML_404), OutcomeKind.UNKNOWN, "not an answer of service A: HTTP 404"),
    "a proxy's 502": (answer(502, HTML_404), OutcomeKind.UNKNOWN, "not an answer of service A: HTTP 502"),
    "A's own 504": (answer(504), OutcomeKind.UNKNOWN, "504 as told"),
    "redirect": (
        answer(302, headers={"Location": "/api/v1/equipment/cpe/ELSEWHERE"}),
        OutcomeKind.UNKNOWN,
        "302 as told",
    ),
    "compressed": (_compressed(), OutcomeKind.SUCCESS, "200 success"),
    "compressed, over 64 KiB": (
        _compressed("x" * 1_000_000),
        OutcomeKind.UNKNOWN,
        "not an answer of service A: HTTP 200",
    ),
    "garbage HTTP": (_raw(b"\x16\x03 garbage\r\n\r\n"), OutcomeKind.UNKNOWN, "no answer: "),
    "hung up": (_raw(b""), OutcomeKind.UNKNOWN, "no answer: ServerDisconnectedError"),
    "lost in the middle": (_raw(LOST), OutcomeKind.UNKNOWN, "no answer: ClientPayloadError"),
    "reset": (reset(), OutcomeKind.UNKNOWN, "no answer: "),
    "over 64 KiB": (
        answer(200, json.dumps({"code": 200, "message": "x" * 70_000})),
        OutcomeKind.UNKNOWN,
        "not an answer of service A: HTTP 200",
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_one_call_has_one_outcome(service_a: ServiceA, fake_a: FakeA, name: str) -> None:
    behaviour, kind, reason = ANSWERS[name]
    fake_a.script["ROUTER1"].append(behaviour)
    job = make_job()
    outcome = await service_a.configure(job)
    assert (outcome.task_id, outcome.attempt, outcome.lease) == (job.task.task_id, 1, job.lease)
    assert outcome.kind is kind
    assert outcome.reason.startswith(reason)
    assert outcome.retry_after_seconds is None
    if kind is OutcomeKind.UNKNOWN:
        assert LIMIT / 2 < outcome.hold_seconds <= LIMIT, "A may be at work until the limit"
    else:
        assert outcome.hold_seconds == 0
    assert [work.equipment_id for work in fake_a.ledger] == ["ROUTER1"]


async def test_a_gets_the_task_as_its_client_wrote_it_and_knows_the_attempt(service_a: ServiceA, fake_a: FakeA) -> None:
    parameters: dict[str, Any] = {
        "username": "ädmin\u2028",
        "password": "\x01\"'\\",
        "vlan": None,
        "interfaces": [],
        "unknown": {"deep": [{"er": 1.0}, 2**70, -0.1, True, ""], "": "空"},
    }
    job = make_job("Serial00", attempt=7, **parameters)
    await service_a.configure(job)
    (work,) = fake_a.ledger
    assert work.equipment_id == "Serial00"
    assert (work.task_id, work.attempt) == (str(job.task.task_id), 7)
    assert json.dumps(work.body) == json.dumps({"timeoutInSeconds": 14, "parameters": parameters})


RETRY_AFTER = {
    "seconds": ("7", 7.0),
    "in the past": ("Mon, 01 Jan 2001 00:00:00 GMT", None),
    "at once": ("0", None),
    "garbage": ("soon", None),
    "negative": ("-7", None),
}


@pytest.mark.parametrize("name", RETRY_AFTER)
async def test_retry_after_is_passed_on(service_a: ServiceA, fake_a: FakeA, name: str) -> None:
    header, seconds = RETRY_AFTER[name]
    fake_a.default = answer(503, headers={"Retry-After": header})
    outcome = await service_a.configure(make_job())
    assert (outcome.kind, outcome.retry_after_seconds) == (OutcomeKind.UNAVAILABLE, seconds)


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_may_be_a_date(service_a: ServiceA, fake_a: FakeA, status: int) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=1000), usegmt=True)
    fake_a.default = answer(status, headers={"Retry-After": date})
    outcome = await service_a.configure(make_job())
    assert outcome.kind is OutcomeKind.UNAVAILABLE
    assert 800 < (outcome.retry_after_seconds or 0) <= 1000


async def test_retry_after_in_a_far_future_is_still_unavailable(service_a: ServiceA, fake_a: FakeA) -> None:
    fake_a.default = answer(503, headers={"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"})
    outcome = await service_a.configure(make_job())
    assert outcome.kind is OutcomeKind.UNAVAILABLE
    assert (outcome.retry_after_seconds or 0) > 86400


async def test_silence_beyond_the_limit_is_unknown_and_a_has_no_time_left(service_a: ServiceA, fake_a: FakeA) -> None:
    fake_a.default = silence()
    outcome = await service_a.configure(make_job(limit=0.3))
    assert (outcome.kind, outcome.hold_seconds) == (OutcomeKind.UNKNOWN, 0)
    assert outcome.reason == "no answer within the time limit"
    assert len(fake_a.ledger) == 1


async def test_the_limit_is_counted_from_when_the_lease_was_asked_for(service_a: ServiceA, fake_a: FakeA) -> None:
    fake_a.default = silence()
    job = make_job(limit=2, waited=0.4)
    assert job.seconds_left <= 1.6
    outcome = await service_a.configure(job)
    assert (outcome.kind, outcome.hold_seconds) == (OutcomeKind.UNKNOWN, 0)
    assert job.seconds_left <= 0


@pytest.mark.parametrize(("limit", "waited"), [(LIMIT, LATENESS_SECONDS + 0.1), (4, 1.1), (LIMIT, 3600)])
async def test_a_late_job_is_not_called_for_and_may_be_tried_again_at_once(
    service_a: ServiceA, fake_a: FakeA, limit: float, waited: float
) -> None:
    outcome = await service_a.configure(make_job(limit=limit, waited=waited))
    assert (outcome.kind, outcome.retry_after_seconds) == (OutcomeKind.UNAVAILABLE, 0)
    assert outcome.reason == "not called: the lease came late, or the process stood still"
    assert not fake_a.ledger


@pytest.mark.parametrize("is_kept", [False, True], ids=["new connection", "kept connection"])
async def test_a_job_that_grows_late_before_its_request_is_sent_is_not_called_for(
    service_a: ServiceA, fake_a: FakeA, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    if is_kept:
        await service_a.configure(make_job("BEFORE"))
    send = Request.send

    async def stand_still(request: Request, connection: Connection) -> ClientResponse:
        response = await send(request, connection)
        job.asked_at -= 3600
        return response

    job = make_job()
    with monkeypatch.context() as patched:
        patched.setattr(Request, "send", stand_still)
        outcome = await service_a.configure(job)
    assert (outcome.kind, outcome.retry_after_seconds) == (OutcomeKind.UNAVAILABLE, 0)
    assert not fake_a.calls("ROUTER1")
    assert (await service_a.configure(make_job("AFTERWARDS"))).kind is OutcomeKind.SUCCESS


async def test_an_a_that_answers_nobody_is_named_until_it_answers_somebody(service_a: ServiceA, fake_a: FakeA) -> None:
    missing: list[str | None] = []
    ends = [answer(502, HTML_404)] * SILENT_ENDS + [answer(503), answer(404)]
    with capture_logs() as logs:
        for behaviour in ends:
            fake_a.script["ROUTER1"].append(behaviour)
            await service_a.configure(make_job())
            await service_a.configure(make_job(waited=3600))
            missing.append(service_a.unready)
            if len(missing) == SILENT_ENDS + 1:
                assert REGISTRY.get_sample_value("service_a_silent_ends") == SILENT_ENDS + 1
    since = str(missing[-2]).split()[-1]
    assert missing == [None] * (SILENT_ENDS - 1) + [f"service A answers nobody since {since}"] * 2 + [None]
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(since) < timedelta(minutes=5)
    assert REGISTRY.get_sample_value("service_a_silent_ends") == 0
    assert [log["event"] for log in logs] == ["service_a.silent", "service_a.answers"]
