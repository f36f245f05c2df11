"""Answers in one piece, as a client gets them that reads the bytes."""

import asyncio
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import pytest
from aiohttp import web
from pytest_aiohttp.plugin import AiohttpServer

from runtime.answers import Answer

BODY = b'{"code":200}'


@pytest.fixture
async def port(aiohttp_server: AiohttpServer) -> int:
    async def answer(request: web.Request) -> Answer:
        return Answer(int(request.match_info["code"]), BODY, {"Retry-After": "5", "Allow": "GET"})

    app = web.Application()
    app.router.add_get("/{code}", answer)
    return (await aiohttp_server(app)).port or 0


async def ask(port: int, *requests: str) -> bytes:
    """Send requests in one piece; return all that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("".join(f"{request}\r\nHost: a\r\n\r\n" for request in requests).encode())
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    return answer


def split(answer: bytes) -> tuple[str, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    headers = dict(pairs)
    assert len(headers) == len(pairs), "no header twice"
    return status, headers, body


CLOSE = "Connection: close"


@pytest.mark.parametrize("code", [200, 404, 422, 500, 503])
async def test_an_answer_has_all_that_http_asks_for(port: int, code: int) -> None:
    status, headers, body = split(await ask(port, f"GET /{code} HTTP/1.1\r\n{CLOSE}"))
    assert (status, body) == (f"HTTP/1.1 {code} {HTTPStatus(code).phrase}", BODY)
    date = parsedate_to_datetime(headers.pop("Date"))
    assert abs((datetime.now(UTC) - date).total_seconds()) < 30
    assert headers == {
        "Content-Type": "application/json",
        "Content-Length": str(len(BODY)),
        "Retry-After": "5",
        "Allow": "GET",
        "Connection": "close",
    }


async def test_head_gets_the_same_head_alone(port: int) -> None:
    got = split(await ask(port, f"GET /200 HTTP/1.1\r\n{CLOSE}"))
    headed = split(await ask(port, f"HEAD /200 HTTP/1.1\r\n{CLOSE}"))
    assert {**headed[1], "Date": ""} == {**got[1], "Date": ""}
    assert (headed[0], headed[2]) == (got[0], b"")


@pytest.mark.parametrize(
    ("first", "said"),
    [("GET /200 HTTP/1.1", None), ("GET /200 HTTP/1.0\r\nConnection: keep-alive", "keep-alive")],
)
async def test_a_connection_is_kept_for_the_next_request(port: int, first: str, said: str | None) -> None:
    """Both requests are sent at once: the answers come in their order."""
    answers = await ask(port, first, f"GET /404 HTTP/1.1\r\n{CLOSE}")
    end = answers.index(BODY) + len(BODY)
    _, headers, _ = split(answers[:end])
    assert headers.get("Connection") == said
    assert split(answers[end:])[0] == "HTTP/1.1 404 Not Found"


@pytest.mark.parametrize("request_line", ["GET /200 HTTP/1.0", f"GET /200 HTTP/1.1\r\n{CLOSE}"])
async def test_a_connection_is_closed_where_the_client_wants_it(port: int, request_line: str) -> None:
    _, headers, body = split(await ask(port, request_line))
    assert headers["Connection"] == "close"
    assert body == BODY


async def test_an_answer_may_close_what_the_client_would_keep(aiohttp_server: AiohttpServer) -> None:
    async def answer(request: web.Request) -> Answer:
        response = Answer(400, BODY)
        response.force_close()
        return response

    app = web.Application()
    app.router.add_get("/", answer)
    _, headers, _ = split(await ask((await aiohttp_server(app)).port or 0, "GET / HTTP/1.1"))
    assert headers["Connection"] == "close"
