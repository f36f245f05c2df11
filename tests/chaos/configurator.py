"""`python -m tests.chaos.configurator`: the configurator as it is, but its requests tell when they were sent.

The promise holds as long as A answers within the limit, and only the sender's clock says when that has passed: on a
starved machine or a bad network a request may reach A long after its caller has given it up.
"""

import time
from typing import Any

import aiohttp

from configurator.__main__ import main

_request = aiohttp.ClientSession._request


async def _request_with_time(
    http: aiohttp.ClientSession, method: str, url: Any, *, headers: dict[str, str], **options: Any
) -> aiohttp.ClientResponse:
    return await _request(http, method, url, headers=headers | {"X-Sent": repr(time.monotonic())}, **options)


if __name__ == "__main__":
    aiohttp.ClientSession._request = _request_with_time  # type: ignore[method-assign,assignment]
    main()
