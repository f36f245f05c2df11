"""The file of tokens: what it may say, and that it is read again."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from runtime.settings import read_settings
from service_b.settings import Settings
from service_b.tokens import token
from service_b.tokens.file import Tokens, TokensFileError, parse, write_line
from tests.conftest import eventually
from tests.system.spawning import ROOT

SECRET = "hunter2-Secret"
GOOD = {"name": "oss", "sha256": "0" * 64, "roles": ["submit", "read"]}


def line(**changes: Any) -> str:
    return json.dumps({key: value for key, value in (GOOD | changes).items() if value is not ...})


def test_a_line_says_whose_what_where_and_until_when() -> None:
    [(key, access)] = parse(line(devices=["ABC*"], expires="2027-01-01T00:00:00+01:00")).items()
    assert key == bytes(32)
    assert (access.name, sorted(access.roles), access.expires) == ("oss", ["read", "submit"], 1798758000)
    assert (access.covers("ABC1234"), access.covers("XYZ9876")) == (True, False)


def test_devices_and_expires_may_be_left_out() -> None:
    [access] = parse(f"\n{line()}\n  \n").values()
    assert access.covers("XYZ9876")
    assert access.expires == float("inf")
    assert parse("") == {}


def test_tokens_may_share_a_name() -> None:
    """So a client changes its token, and still sees its tasks."""
    assert [access.name for access in parse(f"{line()}\n{line(sha256='1' * 64)}").values()] == ["oss", "oss"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "line 1: Invalid JSON"),
        (f"{line()}\n\n[]", "line 3: Input should be an object"),
        (line(name=...), "line 1: name: Field required"),
        (line(name=""), "line 1: name: "),
        (line(name="a b"), "line 1: name: "),
        (line(name="oss\n"), "line 1: name: "),
        (line(name="o" * 65), "line 1: name: "),
        (line(sha256=...), "line 1: sha256: Field required"),
        (line(sha256=SECRET), "line 1: sha256: "),
        (line(sha256="0" * 63), "line 1: sha256: "),
        (line(roles=...), "line 1: roles: Field required"),
        (line(roles=[]), "line 1: roles: "),
        (line(roles="read"), "line 1: roles: "),
        (line(roles=["root"]), "line 1: roles: "),
        (line(devices=[]), "line 1: devices: "),
        (line(devices=["ABC["]), "line 1: devices: "),
        (line(devices=[""]), "line 1: devices: "),
        (line(expires="2027-01-01T00:00:00"), "line 1: expires: "),
        (line(expires="2027-01-01"), "line 1: expires: "),
        (line(expires=1798758000), "line 1: expires: "),
        (line(expire="2027-01-01T00:00:00Z"), "line 1: Extra inputs are not permitted"),
        (line(**{SECRET: 1}), "line 1: Extra inputs are not permitted"),
        (f"{line()}\n{line(name='crm')}", "line 2: sha256: the same token is in a line before"),
    ],
)
def test_a_line_that_is_wrong_is_named_and_not_quoted(text: str, says: str) -> None:
    with pytest.raises(TokensFileError) as refusal:
        parse(text)
    assert str(refusal.value).startswith(says)
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("content", [None, b"\xff", line(roles=["root"]).encode()])
def test_a_broken_file_stops_the_process_at_its_start(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokens"
    if content:
        path.write_bytes(content)
    monkeypatch.setenv("TOKENS_FILE", str(path))
    with pytest.raises(SystemExit) as stopped:
        read_settings(Settings)
    assert re.fullmatch(r"wrong settings: TOKENS_FILE: must be a file of tokens \([^\n]+\)", str(stopped.value))


@asynccontextmanager
async def following(path: Path) -> AsyncIterator[Tokens]:
    tokens = Tokens(path, look_seconds=0.01)
    loop = asyncio.create_task(tokens.follow())
    yield tokens
    assert not loop.done()
    loop.cancel()


async def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path, old, new = tmp_path / "tokens", token.make(), token.make()
    path.write_text(write_line(old, "oss", ["read"], ["*"], None))
    async with following(path) as tokens:
        assert (tokens.find(old), tokens.find(new)) != (None, None)
        # As editors and Kubernetes do it: another file under this name.
        (tmp_path / "other").write_text(write_line(new, "crm", ["submit"], ["*"], None))
        (tmp_path / "other").rename(path)
        await eventually(lambda: tokens.find(new))
        assert tokens.find(old) is None
        path.write_text("")
        await eventually(lambda: tokens.find(new) is None)


async def test_a_file_that_breaks_leaves_the_last_good_one_in_force(tmp_path: Path) -> None:
    path, text = tmp_path / "tokens", token.make()
    good = write_line(text, "oss", ["read"], ["*"], None)
    path.write_text(good)
    with capture_logs() as logs:
        async with following(path) as tokens:
            path.write_text(f"{good}\n{SECRET}")
            await eventually(lambda: logs)
            path.unlink()
            await eventually(lambda: len(logs) == 2)
            assert tokens.find(text)
            path.write_text(good.replace("oss", "crm"))
            await eventually(lambda: (access := tokens.find(text)) and access.name == "crm")
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("tokens.file_broken", "error"),
        ("tokens.file_broken", "error"),
        ("tokens.read", "info"),
    ]
    assert logs[0]["reason"].startswith("line 2: Invalid JSON")
    assert SECRET not in str(logs)


async def test_a_token_ends_when_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, text = tmp_path / "tokens", token.make()
    path.write_text(write_line(text, "oss", ["read"], ["*"], "2027-01-01T00:00:00Z"))
    tokens = Tokens(path)
    for now, found in ((1798761599.9, True), (1798761600, False), (1798761600.1, False)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert (tokens.find(text) is not None) is found


def make_token(**variables: str) -> subprocess.CompletedProcess[str]:
    arguments = [f"{name}={value}" for name, value in variables.items()]
    command = ["make", "--silent", "token", "system-venv=", f"python={sys.executable}", "bootstrap=true", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)


def test_make_token_prints_a_token_and_its_line() -> None:
    made = make_token(NAME="oss", ROLES="submit,read", DEVICES="ABC*,XYZ*", EXPIRES="2027-01-01T00:00:00Z")
    assert made.returncode == 0, made.stderr
    [text] = [each for each in made.stdout.splitlines() if each.startswith("cpe_")]
    [(key, access)] = parse(made.stdout.strip().splitlines()[-1]).items()
    assert key == token.digest(text)
    assert (access.name, sorted(access.roles), access.expires) == ("oss", ["read", "submit"], 1798761600)
    assert (access.covers("XYZ9876"), access.covers("OTHER123")) == (True, False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"ROLES": "root"}, "roles: "), ({"NAME": "$(id) x"}, "name: "), ({"EXPIRES": "tomorrow"}, "expires: ")],
)
def test_make_token_makes_none_that_the_file_may_not_name(changes: dict[str, str], says: str) -> None:
    made = make_token(**({"NAME": "oss", "ROLES": "read"} | changes))
    assert made.returncode != 0
    assert f"make token: {says}" in made.stderr
    assert "cpe_" not in made.stdout
