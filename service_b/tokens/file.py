"""The tokens that are in force: those of a file, which is read again when it changes."""

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NotRequired

import structlog
from pydantic import AwareDatetime, Field, StringConstraints, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from service_b.tokens import token
from service_b.tokens.access import Access, Role

log = structlog.stdlib.get_logger(__name__)

LOOK_SECONDS = 1.0
"""So often we look whether the file has changed; the contract promises 5 s."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Pattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9*]{1,128}$")]


@with_config(extra="forbid", strict=True)
class Line(TypedDict):
    """One line of the file. What it does not know it refuses: a misspelt `expires` would last for ever."""

    name: Name
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    roles: Annotated[list[Role], Field(min_length=1)]
    devices: NotRequired[Annotated[list[Pattern], Field(min_length=1)]]
    expires: NotRequired[AwareDatetime | None]


_read_line = TypeAdapter(Line).validate_json


class TokensFileError(ValueError):
    """The file cannot be read; the text is one line that says where and why, and quotes nothing of it."""


def parse(text: str) -> dict[bytes, Access]:
    """Read the lines of a file; empty ones are passed over. Raises `TokensFileError`."""
    found: dict[bytes, Access] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            said = _read_line(line)
        except ValidationError as error:
            fault = error.errors(include_input=False, include_context=False, include_url=False)[0]
            # A name that we do not know is not told: it may be anything.
            where = [str(part) for part in fault["loc"] if part in Line.__annotations__]
            raise TokensFileError(": ".join([f"line {number}", *where, fault["msg"]])) from None
        key = bytes.fromhex(said["sha256"])
        if key in found:
            raise TokensFileError(f"line {number}: sha256: the same token is in a line before")
        found[key] = Access.of(said["name"], said["roles"], said.get("devices", ["*"]), said.get("expires"))
    return found


def read(path: Path) -> dict[bytes, Access]:
    """Read a file of tokens. Raises `TokensFileError`."""
    try:
        return parse(path.read_text("utf-8"))
    except OSError as error:
        raise TokensFileError(error.strerror or type(error).__name__) from None
    except UnicodeDecodeError:
        raise TokensFileError("it is not UTF-8") from None


class Tokens:
    """Finds tokens by what clients send. A file that was broken leaves in force what it said before."""

    def __init__(self, path: Path, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._path = path
        self._look_seconds = look_seconds
        # What the file looked like when it was read last; first, so that a change while it is read is seen.
        self._seen = _look(path)
        self._access: Mapping[bytes, Access] = read(path)

    def find(self, text: str) -> Access | None:
        """Tell what the holder of a token may do; None for one that is unknown, revoked or expired."""
        key = token.digest(text)
        access = self._access.get(key) if key else None
        return access if access and access.expires > time.time() else None

    async def follow(self) -> None:
        """Read the file again whenever it has changed, until cancelled; in a thread, for its disk may be slow."""
        while True:
            await asyncio.sleep(self._look_seconds)
            seen = await asyncio.to_thread(_look, self._path)
            if seen == self._seen:
                continue
            self._seen = seen
            try:
                self._access = await asyncio.to_thread(read, self._path)
            except TokensFileError as error:
                log.error("tokens.file_broken", file=str(self._path), reason=str(error), in_force=len(self._access))
            else:
                log.info("tokens.read", file=str(self._path), in_force=len(self._access))


def write_line(text: str, name: str, roles: Sequence[str], devices: Sequence[str], expires: str | None) -> str:
    """Make the line of a new token. Raises `TokensFileError` for what the file may not say."""
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    line = {"name": name, "sha256": sha256, "roles": roles, "devices": devices, "expires": expires}
    written = json.dumps({key: value for key, value in line.items() if value})
    parse(written)
    return written


def _look(path: Path) -> tuple[int, ...] | None:
    """Tell what changes with the file; None while there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
