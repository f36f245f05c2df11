"""How log lines leave the process: nobody waits for their reader, be it slow or gone."""

import logging
import os
import select
import threading
from collections import deque

from typing_extensions import override

from runtime.metrics import LOST_RECORDS

MAX_BYTES = 4 * 1024 * 1024
FLUSH_SECONDS = 2.0


class Writer(logging.Handler):
    """Queues formatted records, and lets a thread write them to a descriptor.

        emit ──▶ queued (at most `max_bytes`, the lines being written included) ──▶ thread ──▶ descriptor
          └─ no room: counted, and said in a line of its own once there is room

    The standard library's `QueueHandler` and `QueueListener` would wait without limit when they stop, and report what
    does not fit to standard error, the very thing that is stuck. The thread is a daemon, so that it holds up no exit.
    It writes to the descriptor, not to `sys.stderr`: an interpreter that ends while a daemon holds that stream's lock
    aborts.
    """

    def __init__(self, descriptor: int, *, max_bytes: int = MAX_BYTES, flush_seconds: float = FLUSH_SECONDS) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        # How long an exit waits for what is queued.
        self._flush_seconds = flush_seconds
        # Guards all that follows; notified when a line comes and when all are written.
        self._changed = threading.Condition()
        self._queued: deque[bytes] = deque()
        # Of the queued lines, and of those that the thread is writing.
        self._bytes = 0
        # Records that did not fit since the last time that this was said.
        self._lost = 0
        # Whether all that came has been written.
        self._is_idle = True
        self._is_closing = False
        threading.Thread(target=self._write_all, name="log writer", daemon=True).start()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - told in its place; logging itself would write to standard error.
            line = self._format("a record cannot be written: %s", type(error).__name__, of=record.name)
        data = _encode(line)
        with self._changed:
            if self._bytes + len(data) > self._max_bytes:
                self._lost += 1
                self._is_idle = False
                LOST_RECORDS.inc()
                return
            self._queued.append(data)
            self._bytes += len(data)
            self._is_idle = False
            self._changed.notify_all()

    @override
    def flush(self) -> None:
        """Wait until all is written, but not for a reader that does not read. `logging` does so as the process ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_idle, self._flush_seconds)

    @override
    def close(self) -> None:
        """Let the thread end when all is written."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        super().close()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                if not self._queued and not self._lost:
                    self._is_idle = True
                    self._changed.notify_all()
                self._changed.wait_for(lambda: self._queued or self._lost or self._is_closing)
                lines, self._queued = self._queued, deque()
                lost, self._lost = self._lost, 0
                if not lines and not lost:
                    return
            for chunk in _chunks(lines):
                self._write(chunk)
                with self._changed:
                    self._bytes -= len(chunk)
            if lost:  # After the lines that were queued when there was no more room.
                self._write(_encode(self._format("%d records were lost: nobody read the log", lost, of=__name__)))

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # Somebody who shares the descriptor has made it so.
                waiting = select.poll()
                waiting.register(self._descriptor, select.POLLOUT)
                waiting.poll()
            except OSError:  # The reader is gone, or the disk is full; there is nobody to tell.
                LOST_RECORDS.inc(data.count(b"\n"))
                return

    def _format(self, text: str, *arguments: object, of: str) -> str:
        return self.format(logging.LogRecord(of, logging.WARNING, __file__, 0, text, arguments, None))


def _encode(line: str) -> bytes:
    return line.encode(errors="backslashreplace") + b"\n"


def _chunks(lines: deque[bytes]) -> list[bytes]:
    """Put lines together, but only as many as go into a pipe at once: what others write there comes between chunks."""
    chunks: list[bytes] = []
    for line in lines:
        if chunks and len(chunks[-1]) + len(line) <= select.PIPE_BUF:
            chunks[-1] += line
        else:
            chunks.append(line)
    return chunks
