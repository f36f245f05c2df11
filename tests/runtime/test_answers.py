"""Answers in one piece, as a client gets them that reads the bytes."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import pytest
from aiohttp import web
from pytest_aiohttp.plugin import AiohttpServer

from runtime.answers import PIECE_BYTES, Answer
from tests.conftest import eventually

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


# What an answer refuses


@pytest.mark.parametrize(
    "headers",
    [
        {"X": "a\r\nEvil: 1"},
        {"X": "a\nEvil: 1"},
        {"X": "a\rEvil: 1"},
        {"X": "\x00"},
        {"X": "\x7f"},
        {"X": "ü"},
        {"X: a\r\nEvil": "1"},
        {"": "1"},
        {"X Y": "1"},
        {"ü": "1"},
        {"Content-Length": "1"},
        {"content-type": "text/html"},
        {"Transfer-Encoding": "chunked"},
        {"Connection": "close"},
        {"Date": "today"},
    ],
)
def test_what_is_no_header_of_its_own_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="header"):
        Answer(200, BODY, headers)


@pytest.mark.parametrize("code", [101, 204, 205, 304, 999])
def test_a_code_without_a_body_or_a_meaning_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match=str(code)):
        Answer(code, BODY)


CHANGES: dict[str, Callable[[Answer], object]] = {
    "headers": lambda answer: answer.headers.add("X", "1"),
    "cookies": lambda answer: answer.cookies,
    "set_cookie": lambda answer: answer.set_cookie("a", "b"),
    "del_cookie": lambda answer: answer.del_cookie("a"),
    "content_type": lambda answer: setattr(answer, "content_type", "text/html"),
    "reading its type": lambda answer: answer.content_type,
    "charset": lambda answer: setattr(answer, "charset", "utf-8"),
    "content_length": lambda answer: setattr(answer, "content_length", 1),
    "last_modified": lambda answer: setattr(answer, "last_modified", 1),
    "etag": lambda answer: setattr(answer, "etag", "a"),
    "set_status": lambda answer: answer.set_status(404),
    "compression": lambda answer: answer.enable_compression(),
    "chunks": lambda answer: answer.enable_chunked_encoding(),
    "pieces": lambda answer: answer.write(b"more"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_would_be_lost_is_refused(change: str) -> None:
    with pytest.raises(TypeError, match="whole"):
        CHANGES[change](Answer(200, BODY))


async def test_more_at_the_end_is_refused() -> None:
    with pytest.raises(TypeError, match="whole"):
        await Answer(200, BODY).write_eof(b"more")


async def test_a_signal_that_would_be_lost_is_refused(aiohttp_server: AiohttpServer) -> None:
    raised: list[str] = []

    async def change(request: web.Request, response: web.StreamResponse) -> None:
        """Change nothing."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            await Answer(200, BODY).prepare(request)
        except TypeError as error:
            raised.append(str(error))
        return web.Response()

    app = web.Application()
    app.on_response_prepare.append(change)
    app.router.add_get("/", handle)
    await ask((await aiohttp_server(app)).port or 0, f"GET / HTTP/1.1\r\n{CLOSE}")
    assert raised == ["on_response_prepare changes answers: an Answer is whole"]


async def test_a_handler_may_send_it_itself(aiohttp_server: AiohttpServer) -> None:
    async def handle(request: web.Request) -> Answer:
        answer = Answer(200, BODY)
        await answer.prepare(request)
        return answer

    app = web.Application()
    app.router.add_get("/", handle)
    told = await ask((await aiohttp_server(app)).port or 0, f"GET / HTTP/1.1\r\n{CLOSE}")
    assert told.count(BODY) == 1


async def test_a_long_answer_is_whole_and_waits_for_its_client(aiohttp_server: AiohttpServer) -> None:
    """What a client does not take is not copied into our memory."""
    body = bytes(range(256)) * (160 * PIECE_BYTES // 256) + b"end"
    transports: list[asyncio.WriteTransport] = []

    async def answer(request: web.Request) -> Answer:
        assert isinstance(request.transport, asyncio.WriteTransport)
        transports.append(request.transport)
        return Answer(200, body)

    app = web.Application()
    app.router.add_route("*", "/", answer)
    port = (await aiohttp_server(app)).port or 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(f"GET / HTTP/1.1\r\nHost: a\r\n{CLOSE}\r\n\r\n".encode())
    await eventually(lambda: transports and transports[0].get_write_buffer_size() > 0)
    assert transports[0].get_write_buffer_size() < 3 * PIECE_BYTES
    status, headers, received = split(await reader.read())
    assert (status, headers["Content-Length"], received == body) == ("HTTP/1.1 200 OK", str(len(body)), True)
    writer.close()
    status, headers, received = split(await ask(port, f"HEAD / HTTP/1.1\r\n{CLOSE}"))
    assert (headers["Content-Length"], received) == (str(len(body)), b"")
