"""Service A holds as many waiting callers as the contract shows: 15,000 at once in one process."""

import asyncio
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.processes import Process

CALLERS = 15_000
DELAYS_SECONDS = (15, 60, 240)
"""A's delay must be longer than all callers take to ask, which depends on how busy this machine is."""
# Connections that are being opened at one time: a listening socket's queue is 4,096 long on a usual Linux.
OPENING = 500
DESCRIPTORS_BESIDES = 200


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = CALLERS + DESCRIPTORS_BESIDES
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.fail(f"this machine allows a process {hard} descriptors, {needed} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_holds_15_000_waiting_requests(tmp_path: Path, many_descriptors: None) -> None:
    for delay in DELAYS_SECONDS:
        sent, answered, answers = await ask_all(tmp_path, delay)
        assert all(answer.startswith(b"HTTP/1.1 200 OK\r\n") for answer in answers)
        assert all(answer.endswith(b'{"code": 200, "message": "success"}') for answer in answers)
        if sent < answered:
            return  # All had asked before the first was answered, so there was a moment when all of them waited.
    pytest.fail(f"{CALLERS} callers could not all ask within {delay} s")


async def ask_all(folder: Path, delay: int) -> tuple[float, float, list[bytes]]:
    """Tell when the last caller had asked, when the first was answered, and all answers."""
    body = json.dumps({"timeoutInSeconds": 14, "parameters": {"username": "a", "password": "a", "interfaces": []}})
    request = (
        "POST /api/v1/equipment/cpe/DEVICE{} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}"
    )
    opening = asyncio.Semaphore(OPENING)
    sent: list[float] = []
    answered: list[float] = []

    with Process("service_a", folder, {"RESPONSE_DELAY_SECONDS": str(delay)}) as service_a:

        async def call(number: int) -> bytes:
            async with opening:
                reader, writer = await asyncio.open_connection("127.0.0.1", service_a.port)
                writer.write(request.format(number, len(body), body).encode())
                await writer.drain()
            sent.append(time.monotonic())
            try:
                answer = await reader.read()
            finally:
                writer.close()
            answered.append(time.monotonic())
            return answer

        async with asyncio.timeout(delay + 200):
            answers = await asyncio.gather(*map(call, range(CALLERS)))
    return max(sent), min(answered), answers
