"""What a process's log lines look like."""

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import structlog

from runtime.logs import AUDIT, configure_logs
from runtime.settings import ProcessSettings

SECRET = "hunter2-Secret"

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Format = Literal["json", "text"]
Lines = Callable[[], list[str]]
Start = Callable[..., Lines]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Start]:
    """Configure the logs as a process does, and give a function that tells the lines."""
    root, aiormq = logging.getLogger(), logging.getLogger("aiormq")
    handlers, level, aiormq_level = root.handlers[:], root.level, aiormq.level
    root.handlers = []
    file = tmp_path / "log"
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY)

    def configure(level: Level = "INFO", log_format: Format | None = "json", *, terminal: bool = False) -> Lines:
        monkeypatch.setattr(os, "isatty", lambda number: terminal and number == descriptor)
        writer = configure_logs(ProcessSettings(log_level=level, log_format=log_format), descriptor)
        structlog.configure(cache_logger_on_first_use=False)

        def lines() -> list[str]:
            writer.flush()
            return file.read_text().splitlines()

        return lines

    yield configure
    structlog.reset_defaults()
    logging.captureWarnings(False)
    for writer in root.handlers:
        writer.flush()
        writer.close()
    os.close(descriptor)
    root.handlers = handlers
    root.setLevel(level)
    aiormq.setLevel(aiormq_level)
    AUDIT.setLevel(logging.NOTSET)


def fail(password: str) -> None:
    raise ValueError("the cause")


def log_an_exception(logger: Any, **fields: object) -> None:
    try:
        fail(SECRET)
    except ValueError:
        logger.exception("thing.bug", **fields)


def test_a_json_line_holds_the_event_and_its_fields(start: Start) -> None:
    lines = start()
    structlog.stdlib.get_logger("some.module").info("task.stored", task_id="1", size=2, odd=ValueError("ü"))
    (line,) = map(json.loads, lines())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "task.stored",
        "level": "info",
        "logger": "some.module",
        "task_id": "1",
        "size": 2,
        "odd": "ü",
    }


def test_a_record_of_a_library_is_a_json_line_too(start: Start) -> None:
    lines = start()
    logging.getLogger("library").warning("lost %d of %s", 3, "them")
    (line,) = map(json.loads, lines())
    assert (line["event"], line["level"], line["logger"]) == ("lost 3 of them", "warning", "library")


@pytest.mark.parametrize("logger", [structlog.stdlib.get_logger("ours"), logging.getLogger("library")])
def test_an_exception_is_one_json_line_with_its_traceback(start: Start, logger: Any) -> None:
    lines = start()
    log_an_exception(logger)
    (line,) = map(json.loads, lines())
    assert (line["event"], line["level"]) == ("thing.bug", "error")
    assert "in fail" in line["exception"]
    assert line["exception"].endswith("ValueError: the cause")


@pytest.mark.parametrize("logger", [structlog.stdlib.get_logger("ours"), logging.getLogger("library")])
@pytest.mark.parametrize("terminal", [True, False])
def test_text_is_for_people_and_shows_no_local_variable(start: Start, logger: Any, terminal: bool) -> None:
    lines = start("INFO", "text", terminal=terminal)
    log_an_exception(logger)
    text = "\n".join(lines())
    assert "thing.bug" in text
    assert "ValueError: the cause" in text
    assert SECRET not in text
    assert ("\x1b[" in text) == terminal
    with pytest.raises(ValueError, match=r"Expecting value|Extra data"):
        json.loads(lines()[0])


@pytest.mark.parametrize("terminal", [True, False])
def test_without_a_format_a_terminal_gets_text_and_the_rest_json(start: Start, terminal: bool) -> None:
    lines = start("INFO", None, terminal=terminal)
    structlog.stdlib.get_logger("ours").info("thing.done")
    assert lines()[0].startswith("{") != terminal


@pytest.mark.parametrize(
    ("level", "seen"),
    [("DEBUG", ["debug", "info", "error"]), ("INFO", ["info", "error"]), ("ERROR", ["error"])],
)
def test_the_level_holds_for_ours_and_for_the_libraries(start: Start, level: Level, seen: list[str]) -> None:
    lines = start(level)
    loggers: list[Any] = [structlog.stdlib.get_logger("ours"), logging.getLogger("library")]
    for logger in loggers:
        logger.debug("debug")
        logger.info("info")
        logger.error("error")
    assert [json.loads(line)["event"] for line in lines()] == seen * 2


def test_aiormq_does_not_tell_of_each_loss_besides_us(start: Start) -> None:
    lines = start("DEBUG")
    logging.getLogger("aiormq.connection").error("lost")
    assert lines() == []


def test_a_warning_of_pythons_is_a_json_line_too(start: Start) -> None:
    lines = start()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (line,) = map(json.loads, lines())
    assert (line["level"], line["logger"], "DeprecationWarning: old" in line["event"]) == (
        "warning",
        "py.warnings",
        True,
    )


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_audit_lines_are_written_as_they_are_at_every_level(start: Start, log_format: Format) -> None:
    lines = start("ERROR", log_format)
    AUDIT.info('{"token":"100%s"}\n{"token":null}')
    structlog.get_logger("other").info("not.written")
    assert lines() == ['{"token":"100%s"}', '{"token":null}']
