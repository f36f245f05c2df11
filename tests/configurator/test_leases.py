"""The client of the leases: what each answer means, whom it asks next, and that every retry is the same lease's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr
from structlog.testing import capture_logs

from configurator import leases as client
from configurator.jobs import Job
from configurator.leases import BATCH, Answer, Leases
from tests.configurator.calls import make_delivery, make_task
from tests.conftest import eventually
from tests.fake_results import FakeResults, Reaction, decide, grant_and_reset, held, reset, say


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.01)


@pytest.fixture
async def both() -> AsyncIterator[tuple[FakeResults, FakeResults]]:
    """Two results processes, which know nothing of each other."""
    async with FakeResults() as first, FakeResults() as second:
        yield first, second


@asynccontextmanager
async def asking(*fakes: FakeResults, timeout_seconds: float = 60) -> AsyncIterator[Leases]:
    async with Leases([fake.url for fake in fakes], timeout_seconds=timeout_seconds) as leases:
        yield leases


def make_job() -> Job:
    return Job(make_task(), make_delivery())


async def until_said(leases: Leases, job: Job) -> Answer:
    while (answer := await leases.ask(job)) is Answer.UNANSWERED:
        pass
    return answer


def events(logs: list[Any]) -> list[str]:
    return [log["event"] for log in logs]


async def test_what_is_granted_refused_and_undecided_is_told_in_order(fake_results: FakeResults) -> None:
    jobs = [make_job() for _ in range(4)]
    fake_results.granted[str(jobs[1].task.task_id), 1] = "another call's"
    async with asking(fake_results) as leases:
        assert await asyncio.gather(*map(leases.ask, jobs)) == [
            Answer.GRANTED,
            Answer.REFUSED,
            Answer.GRANTED,
            Answer.GRANTED,
        ]
        fake_results.default = decide(None)
        assert await leases.ask(jobs[0]) is Answer.UNDECIDED
        fake_results.default = decide(False)
        assert await leases.ask(jobs[0]) is Answer.REFUSED
    assert {asked.lease for asked in fake_results.asked} == {str(job.lease) for job in jobs}


async def test_one_request_at_a_time_asks_for_all_that_have_gathered(fake_results: FakeResults) -> None:
    gate = asyncio.Event()
    fake_results.default = held(gate)
    async with asking(fake_results) as leases:
        asked = [asyncio.create_task(leases.ask(make_job())) for _ in range(1 + 2 * BATCH)]
        await eventually(lambda: fake_results.requests == 1)
        gate.set()
        assert set(await asyncio.gather(*asked)) == {Answer.GRANTED}
    assert fake_results.requests <= 4
    assert len(fake_results.asked) == len(asked)


FAULTS: dict[str, Reaction] = {
    "503": say(503),
    "500": say(500, '{"granted":[true]}'),
    "reset": reset(),
    "hangs": held(asyncio.Event()),
    "nonsense": say(200, "nonsense"),
    "nothing": say(200),
    "a list": say(200, "[true]"),
    "too few": say(200, '{"granted":[]}'),
    "too many": say(200, '{"granted":[true,true]}'),
    "words": say(200, '{"granted":["yes"]}'),
    "numbers": say(200, '{"granted":[1]}'),
    "without end": say(200, '{"granted":[true' + " " * 100_000 + "]}"),
    "redirect": say(307),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_where_one_fails_the_other_is_asked_with_the_same_lease(
    both: tuple[FakeResults, FakeResults], fault: str
) -> None:
    for fake in both:
        fake.script.append(FAULTS[fault])
    async with asking(*both, timeout_seconds=0.5) as leases:
        job = make_job()
        with capture_logs() as logs:
            assert await leases.ask(job) is Answer.UNANSWERED
            missing = leases.unready
            first_asked_at = job.asked_at
            assert await leases.ask(job) is Answer.GRANTED
        assert (missing, leases.unready) == ("results process: no leases", None)
    assert job.asked_at == first_asked_at
    assert {asked.lease for fake in both for asked in fake.asked} == {str(job.lease)}
    assert events(logs) == ["leases.unavailable", "leases.unavailable", "leases.available"]


async def test_one_of_two_that_fails_costs_nothing_but_the_first_try(both: tuple[FakeResults, FakeResults]) -> None:
    both[0].default = say(503)
    async with asking(*both) as leases:
        with capture_logs() as logs:
            for _ in range(5):
                assert await leases.ask(make_job()) is Answer.GRANTED
        assert leases.unready is None
    assert both[0].requests <= 1
    assert len(logs) == both[0].requests


async def test_an_outage_is_logged_when_it_begins_and_when_it_ends(fake_results: FakeResults) -> None:
    await fake_results.stop()
    async with asking(fake_results) as leases:
        job = make_job()
        with capture_logs() as logs:
            for _ in range(3):
                assert await leases.ask(job) is Answer.UNANSWERED
            await fake_results.start()
            assert await until_said(leases, job) is Answer.GRANTED
    assert events(logs) == ["leases.unavailable", "leases.available"]
    assert logs[0]["reason"] == "ClientConnectorError"


async def test_a_grant_whose_answer_is_lost_is_granted_again_to_the_same_call(fake_results: FakeResults) -> None:
    fake_results.script.append(grant_and_reset())
    async with asking(fake_results) as leases:
        job = make_job()
        copy = Job(job.task, job.delivery)
        assert await leases.ask(job) is Answer.UNANSWERED
        assert await leases.ask(copy) is Answer.REFUSED
        assert await leases.ask(job) is Answer.GRANTED


async def test_the_token_is_sent_and_who_takes_another_is_not_ready(both: tuple[FakeResults, FakeResults]) -> None:
    sent: list[str | None] = []

    async def ask_for_it(fake: FakeResults, request: web.Request) -> web.StreamResponse:
        sent.append(request.headers.get("Authorization"))
        return await (decide() if sent[-1] == "Bearer s3cret" else say(401))(fake, request)

    for fake in both:
        fake.default = ask_for_it
    urls = [fake.url for fake in both]
    async with Leases(urls, SecretStr("s3cret")) as knowing, Leases(urls, SecretStr("other")) as ignorant:
        assert await knowing.ask(make_job()) is Answer.GRANTED
        with capture_logs() as logs:
            assert await ignorant.ask(make_job()) is Answer.UNANSWERED
        assert (knowing.unready, ignorant.unready) == (None, "results process: no leases")
    assert sent == ["Bearer s3cret", "Bearer other", "Bearer other"]
    assert [entry["reason"] for entry in logs] == ["HTTP 401", "HTTP 401"]
    assert "other" not in str(logs)
