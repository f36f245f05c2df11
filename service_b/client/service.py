"""The service as its clients see it, over HTTP."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp

KIND = "application/x-ndjson"
WAIT_SECONDS = 60
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 90.0
"""How long an answer, or the next line of one, may take."""
ENDED = {"succeeded", "failed", "cancelled", "expired"}


class RefusedError(Exception):
    """The service answers, but not with what was asked for; its text is for a person."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Service:
    """Asks the service at one URL, with a token where there is one."""

    def __init__(self, url: str, token: str | None, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._url = url.rstrip("/") + "/"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._poll_seconds = poll_seconds
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        patience = aiohttp.ClientTimeout(total=None, sock_read=PATIENCE_SECONDS, sock_connect=10)
        self._session = aiohttp.ClientSession(
            self._url, headers=self._headers, timeout=patience, connector=aiohttp.TCPConnector(limit=0)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def ask(self, method: str, path: str, **others: Any) -> Any:
        """Ask for JSON. Raises `RefusedError`, or `aiohttp.ClientError` when nobody answers."""
        async with self._session.request(method, path, **others) as response:
            await _refuse(response)
            return await response.json(content_type=None)

    async def task(self, task: str, *, wait_seconds: int = 0) -> dict[str, Any]:
        """Tell of a task; at once, or when it ends, if that is sooner than in so many seconds."""
        prefer = {"Prefer": f"wait={wait_seconds}"} if wait_seconds else {}
        told: dict[str, Any] = await self.ask("GET", f"api/v1/tasks/{task}", headers=prefer)
        return told

    async def ended(self, task: str) -> dict[str, Any]:
        """Wait until a task has ended, however long that takes and whatever happens to the service meanwhile."""
        while True:
            try:
                told = await self.task(task, wait_seconds=WAIT_SECONDS)
                if told["state"] in ENDED:
                    return told
            except RefusedError as error:
                if error.status < 500:
                    raise
            except (aiohttp.ClientError, TimeoutError):
                pass  # It is away for a while.
            await asyncio.sleep(self._poll_seconds)

    async def tasks(self, most: int, **filters: str) -> AsyncIterator[dict[str, Any]]:
        """Tell of the newest tasks, of those that the filters name."""
        cursor, seen = "", 0
        while seen < most:
            asked = filters | {"limit": str(min(most - seen, 500))} | ({"cursor": cursor} if cursor else {})
            page = await self.ask("GET", "api/v1/tasks", params=asked)
            for item in page["items"]:
                yield item
            seen += len(page["items"])
            if not (cursor := page["next"] or ""):
                return

    async def submit(self, lines: Sequence[bytes]) -> AsyncGenerator[tuple[int, dict[str, Any]], None]:
        """Send lines, and tell what is answered to each while they are sent; by its place in `lines`.

        There may be no answer to the last ones: then the service stops. Raises as `ask` does.
        """

        async def body() -> AsyncIterator[bytes]:
            for start in range(0, len(lines), 100):
                yield b"".join(line + b"\n" for line in lines[start : start + 100])

        headers = {"Content-Type": KIND}
        async with self._session.post("api/v1/tasks", data=body(), headers=headers) as response:
            await _refuse(response)
            async for line in response.content:
                told = json.loads(line)
                if told["line"] <= len(lines):
                    yield told["line"] - 1, told


async def _refuse(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    text = await response.text()
    try:
        told = json.loads(text)
        text = f"{told['title']}: {told['detail']}" if "title" in told else told["message"]
        text += "".join(f"\n  {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in told.get("errors", ()))
    except (ValueError, KeyError, TypeError):
        pass  # Somebody in front of the service has answered.
    raise RefusedError(response.status, f"{response.status} {text}".strip())
