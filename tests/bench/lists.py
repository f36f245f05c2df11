"""Lists of tasks where many have finished: the first page, one far behind it, and filters that find little."""

import http.client
import json
import statistics
import time
from typing import Any

from tests.bench.fills import fill_finished
from tests.bench.report import Report
from tests.bench.stage import Stage
from tests.system.processes import Process

TURNED_OVER = {
    "all": "",
    "succeeded": "state=succeeded",
    "failed": "state=failed",
    "external id": "externalId=batch-1",
}
"""A hundredth of the tasks have failed, and have the same external id."""
LOOKED_AT = {
    "one device": "equipmentId=GROWN00000777",
    "no such device": "equipmentId=NOBODY1",
    "none there": "state=cancelled",
    "a day": "createdFrom={day}T10:00:00Z&createdTo={day}T11:00:00Z",
}


def measure(stage: Stage, report: Report) -> None:
    """Measure pages of 50, as a client gets them."""
    with stage.room("lists") as room:
        fill_finished(room, stage.sizes.finished)
        room.sql("UPDATE finished SET code = 500, status = 'error', external_id = 'batch-1' WHERE seq % 100 = 0")
        room.sql("VACUUM (ANALYZE) finished")
        day = room.sql("SELECT (now() AT TIME ZONE 'UTC')::date - 3 AS day")[0]["day"]
        web = room.start("service_b")
        for name, query in (TURNED_OVER | LOOKED_AT).items():
            asked = Asked(web, f"/api/v1/tasks?{query.format(day=day)}")
            first = [asked.page(None)[0] for _ in range(stage.sizes.pages // 10)]
            report.add(f"lists.{name}.first page", statistics.median(first), "ms")
            report.add(f"lists.{name}.first page, slowest", max(first), "ms")
            if name in TURNED_OVER:
                report.add(f"lists.{name}.pages", asked.turn_over(stage.sizes.pages), "")
                last = [asked.page(asked.cursor)[0] for _ in range(stage.sizes.pages // 10)]
                report.add(f"lists.{name}.page {stage.sizes.pages:,}", statistics.median(last), "ms")
                report.add(f"lists.{name}.slowest page", asked.slowest, "ms")


class Asked:
    """A list that is asked for, over one connection."""

    def __init__(self, web: Process, path: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", web.port)
        self._path = path
        self.cursor: str | None = None
        self.slowest = 0.0

    def page(self, cursor: str | None) -> tuple[float, dict[str, Any]]:
        """Get a page; return the milliseconds that it took, and what it tells."""
        began = time.perf_counter()
        self._connection.request("GET", self._path + (f"&cursor={cursor}" if cursor else ""))
        response = self._connection.getresponse()
        body = response.read()
        took = 1000 * (time.perf_counter() - began)
        if response.status != 200:
            raise RuntimeError(f"{self._path}: {response.status} {body!r}")
        return took, json.loads(body)

    def turn_over(self, pages: int) -> int:
        """Go on to so many pages; return how many there were. `cursor` is that of the last one."""
        following: str | None = None
        for number in range(pages):
            self.cursor = following
            took, page = self.page(following)
            self.slowest = max(self.slowest, took)
            following = page["next"]
            if following is None:
                return number + 1
        return pages
