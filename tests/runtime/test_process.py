"""How a process of ours begins and ends, whatever its standard streams are."""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from tests.conftest import DEADLINE_SECONDS
from tests.system.spawning import ROOT, base_environment

PREPARED = """
import logging, os, socket, sys
from runtime.process import prepare
from runtime.settings import ProcessSettings
prepare(ProcessSettings)
log = logging.getLogger("test")
"""
"""The beginning of a program that starts as our processes do."""


def run(program: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PREPARED + program],
        env=base_environment() | {"LOG_FORMAT": "json"},
        cwd=ROOT,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
        **options,
    )


def test_it_may_open_as_many_descriptors_as_the_system_allows() -> None:
    program = "import resource; soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE); sys.exit(soft != hard)"
    assert run(program, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (500, 600))).returncode == 0


def test_a_reader_that_stalls_holds_up_neither_the_process_nor_its_end() -> None:
    reader, writer = os.pipe()
    program = "for _ in range(10_000): log.error('x' * 1_000)\nprint('alive', flush=True)\nsys.exit(7)"
    ended = run(program, stdout=subprocess.PIPE, stderr=writer)
    os.close(reader)
    os.close(writer)
    assert (ended.returncode, ended.stdout) == (7, "alive\n")


def test_what_is_queued_at_the_end_is_written() -> None:
    ended = run("for number in range(2_000): log.error('%d', number)", stderr=subprocess.PIPE)
    assert [int(number) for number in re.findall(r'"event": "(\d+)"', ended.stderr)] == list(range(2_000))


@pytest.mark.parametrize(("end", "status"), [("", 0), ("sys.exit(7)", 7), ("raise SystemExit('in words')", 1)])
def test_a_broken_standard_error_changes_no_exit_status(end: str, status: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = run(f"log.error('lost')\n{end}", stderr=writer)
    os.close(writer)
    assert ended.returncode == status


@pytest.mark.parametrize("closed", [(2,), (0, 2), (0, 1, 2), (1,)])
@pytest.mark.parametrize(("end", "status"), [("", 0), ("raise SystemExit('in words')", 1)])
def test_a_closed_standard_stream_changes_no_exit_status_and_no_socket_takes_its_place(
    closed: Sequence[int], end: str, status: int
) -> None:
    program = f"""
made = [socket.socket() for _ in range(4)]
log.error("to nobody's socket")
if min(each.fileno() for each in made) < 3: os._exit(99)
{end}
"""

    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    assert run(program, preexec_fn=close).returncode == status
