"""Reading what a request carries."""

import asyncio
import re

from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError
from multidict import CIMultiDictProxy

from service_b.api.errors import BadRequestError, CompressedBodyError, TooLargeError

MAX_BODY_BYTES = 64 * 1024
BODY_TIMEOUT_SECONDS = 10.0

CANONICAL_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


async def read(request: web.Request) -> bytes:
    """Read the body. A client that leaves, breaks its own framing or dawdles is told so, if it can still be told."""
    if is_compressed(request.headers):
        raise CompressedBodyError
    try:
        if request.content.is_eof():  # It came with the head, as nearly always: nothing to wait for.
            body = request.content.read_nowait()
            if len(body) > MAX_BODY_BYTES:
                raise TooLargeError
            return body
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise TooLargeError from None
    except (TimeoutError, ConnectionError, PayloadEncodingError):
        raise BadRequestError("The body did not arrive") from None


def is_compressed(headers: CIMultiDictProxy[str]) -> bool:
    """Tell from both headers that can say so; the first may come in several lines."""
    if "Content-Encoding" in headers and [each.lower() for each in headers.getall("Content-Encoding")] != ["identity"]:
        return True
    return headers.get("Transfer-Encoding", "chunked").lower() != "chunked"
