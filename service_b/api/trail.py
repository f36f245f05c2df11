"""The audit trail: who has done what, and who was refused. One line for each, where clients have tokens."""

import asyncio
from datetime import UTC, datetime

from aiohttp import web

from runtime.logs import AUDIT
from service_b.api.bodies import SERIAL
from service_b.tokens.access import Access

LINES = 10
"""So many go into a pipe at once: what other processes write there comes between them."""


class Caller:
    """Who asks, by the token, and what the trail says of that."""

    __slots__ = ("access", "device", "is_refused", "task")

    def __init__(self, access: Access) -> None:
        self.access = access
        # The task that it has made, or asks for.
        self.task: str | None = None
        # The device that it asks for.
        self.device: str | None = None
        # It was told that something does not exist which it may not see.
        self.is_refused = False

    def covers(self, equipment_id: str) -> bool:
        """Tell whether a device is the caller's."""
        self.device = equipment_id
        self.is_refused = not self.access.covers(equipment_id)
        return not self.is_refused

    def sees(self, equipment_id: str, submitted_by: str | None) -> bool:
        """Tell whether the caller may see a task; see `Access.sees`."""
        self.device = equipment_id
        self.is_refused = not self.access.sees(equipment_id, submitted_by)
        return not self.is_refused

    def may_act_on(self, equipment_id: str, submitted_by: str | None) -> bool:
        """Tell whether the caller may change a task; see `Access.acts_on`."""
        self.device = equipment_id
        self.is_refused = not self.access.acts_on(equipment_id, submitted_by)
        return not self.is_refused


GATHER_SECONDS = 0.01
"""As exact as the time of a line is."""

CALLER = web.RequestKey("CALLER", Caller)


class Trail:
    """Writes the lines of a moment together: logging each alone costs a third of a whole POST.

    They are JSON whatever `LOG_FORMAT` is, and are written at every `LOG_LEVEL`. Nothing in them needs escaping: what
    comes from outside is left out unless it is a serial or a UUID.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        # When the first of them came.
        self._now = ""

    def note(self, request: web.Request, code: int) -> None:
        """Note an answer if it is to an act (a POST) or refuses something."""
        caller = request.get(CALLER)
        resource = request.match_info.route.resource
        if resource is None or not (
            request.method == "POST" or code in (401, 403) or (caller is not None and caller.is_refused)
        ):
            return
        device = request.match_info.get("id", "")
        if not SERIAL.fullmatch(device):
            device = (caller and caller.device) or ""
        if not self._lines:
            self._now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
            asyncio.get_running_loop().call_later(GATHER_SECONDS, self.write)
        self._lines.append(
            f'{{"event":"api.act","level":"info","logger":"{AUDIT.name}","timestamp":"{self._now}",'
            f'"token":{_quoted(caller and caller.access.name)},"remote":{_quoted(request.remote)},'
            f'"method":"{request.method}","route":"{resource.canonical}",'
            f'"equipment_id":{_quoted(device)},'
            f'"task_id":{_quoted(caller and caller.task)},"code":{code}}}'
        )

    def write(self) -> None:
        """Hand over what has gathered; nothing is lost at a clean stop if it comes after the last request."""
        lines, self._lines = self._lines, []
        for start in range(0, len(lines), LINES):
            AUDIT.info("\n".join(lines[start : start + LINES]))


def _quoted(text: str | None) -> str:
    return f'"{text}"' if text else "null"
