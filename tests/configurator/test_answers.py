"""How an answer of service A's is read: only its own JSON counts, and nothing that it may send breaks the reader."""

import gzip
import json
import tracemalloc
import zlib
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from functools import partial
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configurator import answers
from configurator.answers import (
    MAX_ANSWER_BYTES,
    MAX_RETRY_AFTER_SECONDS,
    decompress,
    parse_retry_after,
)
from messaging.messages import Outcome, OutcomeKind

classify = partial(answers.classify, parameters="{}")

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)

FINAL = {
    200: OutcomeKind.SUCCESS,
    400: OutcomeKind.REJECTED,
    404: OutcomeKind.NOT_FOUND,
    422: OutcomeKind.REJECTED,
    500: OutcomeKind.FAILED,
}


def as_answer(status: int, message: object = "as told") -> bytes:
    return json.dumps({"code": status, "message": message}).encode()


def retry_after(value: str) -> float | None:
    return parse_retry_after({"Retry-After": value}, NOW)


@pytest.mark.parametrize("status", [status.value for status in HTTPStatus] + [299, 418, 499, 520, 599])
def test_every_status_with_as_own_json(status: int) -> None:
    expected = OutcomeKind.UNAVAILABLE if status in (429, 503) else FINAL.get(status, OutcomeKind.UNKNOWN)
    kind, reason = classify(status, as_answer(status))
    assert kind is expected
    assert str(status) in reason
    assert ("as told" in reason) == (expected is not OutcomeKind.UNAVAILABLE)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>404 Not Found</html>",
        b'{"code":',
        b"[]",
        b"null",
        b"{}",
        b'"200"',
        b'{"code":"%d"}',
        b'{"code":%d.0}',
        b'{"code":true}',
        b'{"code":null}',
        b'{"code":1%d}',
        b'[{"code":%d}]',
        b'\xff{"code":%d}',
        b"[" * 60_000,
        b'{"code":' + b"9" * 5000 + b"}",
    ],
    ids=range(16),
)
def test_anything_else_is_nonsense_whatever_its_status(body: bytes) -> None:
    for status in HTTPStatus:
        kind, reason = classify(status, body.replace(b"%d", b"%d" % status))
        assert kind is (OutcomeKind.UNAVAILABLE if status in (429, 503) else OutcomeKind.UNKNOWN)
        assert str(status.value) in reason


@pytest.mark.parametrize("message", [None, 1, True, {}, {"a": 1}, ["text"]])
def test_a_message_that_is_no_text_does_not_change_the_outcome(message: object) -> None:
    assert classify(200, as_answer(200, message)) == (OutcomeKind.SUCCESS, "200 ")


def test_a_message_nested_without_end_does_no_harm() -> None:
    body = b'{"code":200,"message":%s}' % (b"[" * 900 + b"]" * 900)
    assert classify(200, body)[0] is OutcomeKind.SUCCESS


@given(st.text(st.characters()) | st.just("\x00\ud800") | st.just("long" * 1000))
def test_a_reason_can_be_sent_and_stored(message: str) -> None:
    kind, reason = classify(500, as_answer(500, message))
    assert len(reason) <= 304
    assert "\x00" not in reason
    outcome = Outcome(task_id=uuid4(), attempt=1, kind=kind, reason=reason)
    assert Outcome.decode(outcome.encode()) == outcome


@given(st.integers(100, 599), st.binary() | st.recursive(st.none() | st.integers(), st.lists).map(json.dumps))
def test_no_answer_breaks_the_reader(status: int, body: Any) -> None:
    kind, _ = classify(status, body if isinstance(body, bytes) else body.encode())
    assert kind in (OutcomeKind.UNKNOWN, OutcomeKind.UNAVAILABLE)


RAW = zlib.compressobj(wbits=-zlib.MAX_WBITS)
SAID = as_answer(200)
COMPRESSED = {
    "gzip": gzip.compress(SAID, mtime=0),
    "GZip": gzip.compress(SAID, mtime=0),
    "x-gzip": gzip.compress(SAID, mtime=0),
    " gzip , identity": gzip.compress(SAID, mtime=0),
    "deflate": zlib.compress(SAID),
    "deflate, gzip": gzip.compress(zlib.compress(SAID), mtime=0),
    "": SAID,
    "identity": SAID,
}


@pytest.mark.parametrize("codings", COMPRESSED)
def test_a_compressed_answer_is_read(codings: str) -> None:
    assert decompress(COMPRESSED[codings], codings) == SAID


def test_deflate_without_its_frame_is_read() -> None:
    assert decompress(RAW.compress(SAID) + RAW.flush(), "deflate") == SAID


@pytest.mark.parametrize(
    ("body", "codings"),
    [
        (SAID, "gzip"),
        (SAID, "deflate"),
        (SAID, "br"),
        (SAID, "zstd"),
        (b"", "gzip"),
        (gzip.compress(SAID, mtime=0)[:-9], "gzip"),
        (zlib.compress(SAID)[:-5], "deflate"),
        (gzip.compress(SAID, mtime=0), "deflate"),
        (gzip.compress(bytes(MAX_ANSWER_BYTES + 1), mtime=0), "gzip"),
        (gzip.compress(gzip.compress(bytes(10**7), mtime=0), mtime=0), "gzip, gzip"),
    ],
)
def test_what_cannot_be_decompressed_is_nothing(body: bytes, codings: str) -> None:
    assert decompress(body, codings) == b""


def test_a_bomb_costs_no_more_memory_than_an_answer() -> None:
    bomb = gzip.compress(bytes(10**8), mtime=0)
    tracemalloc.start()
    try:
        assert decompress(bomb, "gzip") == b""
        assert tracemalloc.get_traced_memory()[1] < 10 * MAX_ANSWER_BYTES
    finally:
        tracemalloc.stop()


@given(st.binary(), st.sampled_from(["gzip", "deflate", "deflate,gzip"]))
def test_no_compressed_bytes_break_the_reader(body: bytes, codings: str) -> None:
    assert len(decompress(body, codings)) <= MAX_ANSWER_BYTES


def test_without_the_header_there_is_no_wish() -> None:
    assert parse_retry_after({}, NOW) is None


@pytest.mark.parametrize(("value", "seconds"), [("0", 0), ("120", 120), (" 7 ", 7), ("007", 7), ("99999999", 99999999)])
def test_retry_after_in_seconds(value: str, seconds: float) -> None:
    assert retry_after(value) == seconds


@given(st.integers(0, 10**8), st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]))
def test_retry_after_as_a_date(seconds: int, zone: timezone) -> None:
    assert retry_after(format_datetime((NOW + timedelta(seconds=seconds)).astimezone(zone))) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("Tue, 24 Nov 2026 12:00:30 GMT", 30),
        ("Tue, 24 Nov 2026 12:00:30", 30),
        ("Tuesday, 24-Nov-26 12:00:30 GMT", 30),
        ("Tue Nov 24 12:00:30 2026", 30),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Mon, 01 Jan 0001 00:00:00 +2300", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER_SECONDS),
    ],
)
def test_retry_after_as_any_kind_of_date(value: str, seconds: float) -> None:
    assert retry_after(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "-1",
        "1.5",
        "1e3",
        "²",
        "٣",
        "1" * 9,
        "9" * 5000,
        "Tue, 32 Nov 2026 12:00:00 GMT",
        "Fri, 31 Dec 99999999999999999999 23:59:59 GMT",
        "Fri, 31 Dec 2026 23:59:59 +99999999999999999999",
    ],
)
def test_garbage_is_no_wish(value: str) -> None:
    assert retry_after(value) is None


dates = st.builds(
    "{}, {} {} {} {}:{}:{} {}".format,
    st.sampled_from(["Mon", "X", ""]),
    st.integers(),
    st.sampled_from(["Jan", "Dec", "Foo", ""]),
    st.integers(),
    st.integers(-1, 100),
    st.integers(-1, 100),
    st.integers(-1, 100),
    st.sampled_from(["GMT", "+2359", "-9999", "+" + "9" * 20, "?", ""]),
)


@given(st.text() | st.integers().map(str) | dates)
def test_no_value_breaks_the_reader_and_every_wish_can_be_sent(value: str) -> None:
    seconds = retry_after(value)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_SECONDS
    Outcome(task_id=uuid4(), attempt=1, kind=OutcomeKind.UNAVAILABLE, retry_after_seconds=seconds)
