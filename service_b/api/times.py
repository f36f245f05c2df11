"""Times as clients tell and read them: RFC 3339, with an offset."""

import re
from datetime import UTC, datetime

RFC_3339 = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})", re.ASCII)


def parse_time(text: str) -> datetime:
    """Read a time. Raises `ValueError`, which says what is right, for anything else."""
    try:
        if RFC_3339.fullmatch(text.upper()):
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # There is no such day, or no such year.
    raise ValueError("should be a time of RFC 3339 with an offset, such as 2026-11-26T10:00:00+01:00")


def show_time(time: datetime | None) -> str | None:
    """Write a time of UTC."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z") if time else None
