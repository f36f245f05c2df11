"""Log lines leave a process without anybody waiting for their reader."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator

import pytest

from runtime.writer import Writer
from tests.conftest import eventually


class Pipe:
    """A writer, and a reader that reads only when it is told to."""

    def __init__(self, max_bytes: int) -> None:
        self.reader, descriptor = os.pipe()
        os.set_blocking(self.reader, False)
        self.descriptor = descriptor
        self.writer = Writer(descriptor, max_bytes=max_bytes)
        self.received = b""

    def log(self, text: str) -> None:
        self.writer.handle(logging.LogRecord("test", logging.INFO, "", 0, text, (), None))

    def read(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reader, 1 << 20):
                self.received += data
        return self.received.decode().splitlines()

    def close(self) -> None:
        self.writer.close()
        os.close(self.reader)  # Frees a thread that is stuck in a write.
        self.writer.flush()
        os.close(self.descriptor)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe(max_bytes=200_000)
    yield made
    made.close()


async def test_what_nobody_reads_is_counted_and_said_once_it_is_read(pipe: Pipe) -> None:
    for number in range(10_000):
        pipe.log(f"{number:99}")
    await eventually(lambda: pipe.read() and pipe.writer._is_idle)
    lines = pipe.read()
    written = [int(line) for line in lines if "lost" not in line]
    assert written == sorted(set(written))
    assert len(written) >= 2_000, "as many as it may hold"
    lost = [int(said[1]) for said in map(re.compile(r"(\d+) records were lost: nobody .*").fullmatch, lines) if said]
    assert lost
    assert len(written) + sum(lost) == 10_000
    pipe.log("again")
    await eventually(lambda: pipe.read()[-1] == "again")


async def test_a_descriptor_that_does_not_block_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.descriptor, False)
    for number in range(1_900):
        pipe.log(f"{number:99}")
    await eventually(lambda: len(pipe.read()) == 1_900)


async def test_a_record_that_cannot_be_formatted_is_told_in_its_place(pipe: Pipe) -> None:
    pipe.writer.handle(logging.LogRecord("odd", logging.INFO, "", 0, "%d", ("no number",), None))
    await eventually(lambda: pipe.read() == ["a record cannot be written: TypeError"])


async def test_what_is_no_utf_8_is_written_escaped(pipe: Pipe) -> None:
    pipe.log("a\udcffb")
    await eventually(lambda: pipe.read() == [r"a\udcffb"])
