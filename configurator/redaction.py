"""What service A says of a device's parameters, without the parameters: it goes to logs and into the database."""

import html
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_plus

import pydantic_core

SHORTEST = 3
"""Of a shorter value there is nothing to guess that its place in the text does not tell."""
HIDDEN = "***"
ESCAPES = "\\%+&"
"""One of these is in every text that holds a value otherwise than as it is."""


def redact(text: str, parameters: str, longest: int) -> str:
    """Hide every string value of `parameters` (JSON text) in a text of A's, then cut it to `longest` characters.

    In this order: a value that is cut first is not found any more.
    """
    may_be_escaped = any(mark in text for mark in ESCAPES)
    forms = {
        form
        for value in _strings(pydantic_core.from_json(parameters))
        if len(value) >= SHORTEST
        for form in (_forms(value) if may_be_escaped else (value,))
    }
    shown: list[str] = []
    end = 0
    # Values may overlap in the text: what any of them covers is hidden.
    for start, stop in sorted(span for form in forms for span in _spans(text, form, longest)):
        if start >= end:
            shown += text[end:start], HIDDEN
        end = max(end, stop)
    return "".join([*shown, text[end:longest]])[:longest]


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for item in value.values():
                yield from _strings(item)
        case list():
            for item in value:
                yield from _strings(item)


def _forms(value: str) -> set[str]:
    """The ways in which a value is written in a text: as it is, or escaped for JSON, Python, a URL or HTML."""
    written = (json.dumps(value), json.dumps(value, ensure_ascii=False), repr(value))
    escaped = {
        quote(value),
        quote(value, safe=""),
        quote_plus(value),
        html.escape(value),
        html.escape(value, quote=False),
    }
    return {value, *(text[1:-1] for text in written), *escaped}


def _spans(text: str, form: str, longest: int) -> Iterator[tuple[int, int]]:
    """Find every occurrence that begins within what is shown of the text."""
    start = -1
    while (start := text.find(form, start + 1, longest + len(form))) >= 0:
        yield start, start + len(form)
