"""What service A quotes of a device's parameters does not leave the configurator."""

import html
import json
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configurator.redaction import redact

LONGEST = 300
SECRET = 'p"ä\\ss/w+ö rd&<%\n'


def hidden(text: str, parameters: Any) -> str:
    return redact(text, json.dumps(parameters), LONGEST)


@pytest.mark.parametrize(
    ("parameters", "text", "shown"),
    [
        ({}, "as told", "as told"),
        ({"password": "hunter2"}, "", ""),
        ({"password": "hunter2"}, "password 'hunter2' is too short: hunter2", "password '***' is too short: ***"),
        ({"password": "hunter2", "username": "hunter"}, "hunter2 and hunter", "*** and ***"),
        ({"username": "abcd", "password": "cdef"}, "xabcdefx cde", "x***x cde"),
        ({"password": "aaa"}, "aaaaa aa", "*** aa"),
        ({"password": "ab"}, "ab is too short", "ab is too short"),
        ({"password": "abc"}, "abc is too short", "*** is too short"),
        ({"more": {"deep": ["one", {"er": "two"}], "vlan": 534}}, "one two 534 deep", "*** *** 534 deep"),
        ({"password": "***"}, "*** **", "*** **"),
        ({"password": "a.c"}, "abc a.c", "abc ***"),
    ],
)
def test_values_are_hidden_and_nothing_else(parameters: Any, text: str, shown: str) -> None:
    assert hidden(text, parameters) == shown


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        repr(SECRET)[1:-1],
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        html.escape(SECRET),
        html.escape(SECRET, quote=False),
    ],
)
def test_a_value_is_hidden_however_it_is_written(written: str) -> None:
    assert hidden(f"password={written};", {"password": SECRET}) == "password=***;"


@pytest.mark.parametrize("before", range(LONGEST - 10, LONGEST + 2))
def test_a_value_at_the_end_of_what_is_shown_is_not_shown_in_part(before: int) -> None:
    shown = hidden("." * before + "hunter2" * 3, {"password": "hunter2"})
    assert shown.strip(".*") == ""
    assert len(shown) <= LONGEST


words = st.text("abcä\\'\" ", min_size=3, max_size=6)


@given(st.dictionaries(st.text(max_size=3), words | st.lists(words, max_size=3), max_size=4), st.data())
def test_no_value_is_left(parameters: dict[str, Any], data: st.DataObject) -> None:
    flat = [value for item in parameters.values() for value in (item if isinstance(item, list) else [item])]
    pieces = data.draw(st.lists(st.sampled_from([*flat, "a", "b", ", "]), max_size=9))
    shown = hidden("".join(pieces), parameters)
    assert not [value for value in flat if value in shown]


@given(st.text(st.characters()), st.dictionaries(st.text(), st.text()))
def test_no_text_breaks_it(text: str, parameters: dict[str, str]) -> None:
    assert len(redact(text, json.dumps(parameters, ensure_ascii=False), LONGEST)) <= LONGEST


def test_a_long_text_and_many_values_cost_no_time() -> None:
    parameters = {"same": "a" * 20_000} | {str(number): f"{number:06}" for number in range(4000)}
    assert hidden("a" * 60_000, parameters) == "***"
