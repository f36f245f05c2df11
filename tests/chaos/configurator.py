"""`python -m tests.chaos.configurator`: the configurator as it is, but its requests tell when they were sent.

The promise holds as long as A answers within the limit, and only the sender's clock says when that has passed: on a
starved machine or a bad network a request may reach A long after its caller has given it up. And only the sender knows
when it has asked for a lease first.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import aiohttp

from configurator.__main__ import main
from tests.chaos.history import VARIABLE, History

_request = aiohttp.ClientSession._request


class Sender:
    """Stands between the configurator and its HTTP client."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._asked: set[str] = set()

    async def request(self, http: aiohttp.ClientSession, method: str, url: Any, **options: Any) -> Any:
        """Send a request with the times that only its sender knows."""
        if str(url).endswith("/leases"):
            self._note(json.loads(options["data"]))
            return await _request(http, method, url, **options)
        now = time.monotonic()
        options["headers"] |= {"X-Sent": repr(now), "X-Until": repr(now + options["timeout"].total)}
        try:
            return await _request(http, method, url, **options)
        except BaseException:
            # On a machine without a free core that may be later than it should.
            self._history.write("given up", sent=now)
            raise

    def _note(self, body: Any) -> None:
        new = [attempt["lease"] for attempt in body["attempts"] if attempt["lease"] not in self._asked]
        self._asked.update(new)
        if new:
            self._history.write("asked", leases=new)


if __name__ == "__main__":
    sender = Sender(History(Path(os.environ[VARIABLE])))

    async def request(http: aiohttp.ClientSession, method: str, url: Any, **options: Any) -> aiohttp.ClientResponse:
        """A method of the session's."""
        response: aiohttp.ClientResponse = await sender.request(http, method, url, **options)
        return response

    aiohttp.ClientSession._request = request  # type: ignore[method-assign,assignment]
    main()
