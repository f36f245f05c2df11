"""What a client may send: nothing breaks the parser, what it accepts goes through untouched, and limits are exact."""

import json
from typing import Any
from uuid import uuid4

import pydantic_core
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from messaging.messages import ConfigureTask
from service_b.api.bodies import ConfigureRequest, parse_request, parse_serial
from service_b.api.errors import ApiError, BadRequestError, EquipmentNotFoundError, InvalidBodyError

SECRET = "hunter2-Secret"
PARAMETERS: dict[str, Any] = {"username": "admin", "password": SECRET, "interfaces": [1, 2, 3]}
FIELDS = {"username", "password", "vlan", "interfaces"}

# What PostgreSQL and UTF-8 can hold.
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=12,
)
storable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
good_parameters = st.builds(
    lambda known, vlan, more: {key: value for key, value in more.items() if key not in FIELDS} | known | vlan,
    st.fixed_dictionaries(
        {"username": text.filter(bool), "password": text, "interfaces": st.lists(st.integers(0), max_size=8)}
    ),
    st.just({}) | st.fixed_dictionaries({"vlan": st.none() | st.integers(1, 4094)}),
    st.dictionaries(text, storable, max_size=3),
)
nearly_good = st.fixed_dictionaries(
    {
        "timeoutInSeconds": st.integers(0, 3601) | anything,
        "parameters": st.fixed_dictionaries(
            {},
            optional={
                "username": st.text(st.characters()) | anything,
                "password": st.text(st.characters()) | anything,
                "vlan": st.integers() | anything,
                "interfaces": st.lists(st.integers()) | anything,
                "more": anything,
            },
        )
        | anything,
    }
)


def body(parameters: object = PARAMETERS, timeout: object = 14, **more: object) -> bytes:
    return json.dumps({"timeoutInSeconds": timeout, "parameters": parameters} | more).encode()


def faults(raw: bytes) -> list[list[str | int]]:
    with pytest.raises(InvalidBodyError) as refused:
        parse_request(raw)
    return [error["loc"] for error in refused.value.errors]


def assert_goes_through(request: ConfigureRequest) -> None:
    """What was accepted reaches the database as text, and the configurator as a message."""
    request.parameters.encode()
    assert "\x00" not in json.dumps(json.loads(request.parameters), ensure_ascii=False)
    task = ConfigureTask(
        task_id=uuid4(),
        attempt=1,
        equipment_id="ABC123",
        timeout_in_seconds=request.timeout_seconds,
        time_limit_seconds=request.timeout_seconds,
        parameters=request.parameters,
    )
    assert ConfigureTask.decode(task.encode()) == task


def assert_told_in_our_words(raw: bytes) -> None:
    try:
        request = parse_request(raw)
    except (BadRequestError, InvalidBodyError) as error:
        json.dumps(error.body()).encode()
    else:
        assert_goes_through(request)


@given(st.binary())
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    assert_told_in_our_words(raw)


@given(anything)
def test_no_json_breaks_the_parser(value: object) -> None:
    assert_told_in_our_words(json.dumps(value).encode())


@given(nearly_good, st.booleans())
def test_no_wrong_request_breaks_the_parser(value: object, in_ascii: bool) -> None:
    assert_told_in_our_words(json.dumps(value, ensure_ascii=in_ascii).encode(errors="surrogatepass"))


@given(st.integers(1, 3600), good_parameters, st.booleans(), st.dictionaries(text, storable, max_size=2))
def test_a_good_request_goes_through_untouched_but_for_a_null_vlan(
    timeout: int, parameters: dict[str, Any], in_brackets: bool, more: dict[str, Any]
) -> None:
    assume(not more.keys() & {"timeoutInSeconds", "parameters"})
    request = parse_request(body([parameters] if in_brackets else parameters, timeout, **more))
    assert request.timeout_seconds == timeout
    if parameters.get("vlan", 0) is None:
        del parameters["vlan"]
    assert json.loads(request.parameters) == parameters
    assert list(json.loads(request.parameters)) == list(parameters)
    assert_goes_through(request)


ODD = [
    body().replace(b'"admin"', b'"first", "username": "last"'),
    body().replace(b"14", b'14, "timeoutInSeconds": 15'),
    body(PARAMETERS | {"x": 1}).replace(b'"x": 1', b'"x": {"y": 1, "y": 2}'),
    body(PARAMETERS | {"vlan": 1}).replace(b'"vlan": 1', b'"vlan": 1, "vlan": null'),
    body(PARAMETERS | {"x": 10**4000}),
    body(PARAMETERS | {"x": "NaN and Infinity"}),
    *(
        body(PARAMETERS | {"x": 1}).replace(b'"x": 1', b'"x": ' + number)
        for number in (b"1e999", b"-1E400", b"Infinity", b"NaN", b"01", b"1.", b"1e22", b"-0.0", b"1e-400", b"1.5e3")
    ),
    *(body().replace(b"14", number) for number in (b"14.0", b"1e1", b"true", b"9" * 5000)),
    body() + b" ",
    body() + b"{}",
    b"\xef\xbb\xbf" + body(),
    *(
        body().replace(b"admin", name)
        for name in (b"\xff", b"\x00", b"\xed\xa0\x80", b"line\nbreak", b"\\q", b"\\ud83d")
    ),
    body([PARAMETERS]),
]


def outcome(raw: bytes) -> object:
    try:
        request = parse_request(raw)
    except ApiError as error:
        return error.code, error.body()
    return request.timeout_seconds, repr(json.loads(request.parameters))


@pytest.mark.parametrize("raw", ODD)
def test_the_quicker_reader_reads_what_is_odd_as_the_standard_library_does(
    raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = outcome(raw)
    monkeypatch.setattr(pydantic_core, "from_json", refuse)
    assert quick == outcome(raw)


@given(raw=st.builds(lambda value: json.dumps(value, ensure_ascii=False).encode(errors="replace"), nearly_good))
def test_the_quicker_reader_reads_everything_as_the_standard_library_does(raw: bytes) -> None:
    quick = outcome(raw)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(pydantic_core, "from_json", refuse)
        assert quick == outcome(raw)


def refuse(*_: object, **__: object) -> None:
    raise ValueError


def test_a_request_does_not_show_its_parameters() -> None:
    assert SECRET not in repr(parse_request(body()))


@pytest.mark.parametrize(
    ("parameters", "timeout"),
    [
        (PARAMETERS, 1),
        (PARAMETERS, 3600),
        (PARAMETERS | {"vlan": 1}, 14),
        (PARAMETERS | {"vlan": 4094}, 14),
        (PARAMETERS | {"vlan": None}, 14),
        (PARAMETERS | {"username": "a"}, 14),
        (PARAMETERS | {"password": ""}, 14),
        (PARAMETERS | {"interfaces": []}, 14),
        (PARAMETERS | {"interfaces": [0] * 1024}, 14),
        (PARAMETERS | {"interfaces": [10**30]}, 14),
    ],
)
def test_the_ends_of_each_range_are_accepted(parameters: object, timeout: int) -> None:
    assert_goes_through(parse_request(body(parameters, timeout)))


@pytest.mark.parametrize("timeout", [0, -1, 3601, 14.0, "14", True, None, [14], 10**30])
def test_a_wrong_time_out_is_named(timeout: object) -> None:
    assert faults(body(timeout=timeout)) == [["timeoutInSeconds"]]


@pytest.mark.parametrize(
    ("field", "value", "loc"),
    [
        ("vlan", 0, []),
        ("vlan", 4095, []),
        ("vlan", 1.0, []),
        ("vlan", True, []),
        ("vlan", "1", []),
        ("username", "", []),
        ("username", None, []),
        ("username", 1, []),
        ("password", None, []),
        ("password", ["a"], []),
        ("interfaces", None, []),
        ("interfaces", {}, []),
        ("interfaces", "1", []),
        ("interfaces", [0] * 1025, []),
        ("interfaces", [-1], [0]),
        ("interfaces", [0, 1.0], [1]),
        ("interfaces", [0, 1, False], [2]),
        ("interfaces", [[1]], [0]),
    ],
)
def test_a_wrong_parameter_is_named(field: str, value: object, loc: list[int]) -> None:
    assert faults(body(PARAMETERS | {field: value})) == [["parameters", field, *loc]]


@pytest.mark.parametrize("field", ["username", "password", "interfaces"])
def test_a_missing_parameter_is_named(field: str) -> None:
    assert faults(body({key: value for key, value in PARAMETERS.items() if key != field})) == [["parameters", field]]


def test_all_faults_are_told_at_once() -> None:
    assert faults(b'{"parameters":{"username":1,"vlan":0}}') == [
        ["timeoutInSeconds"],
        ["parameters", "username"],
        ["parameters", "password"],
        ["parameters", "vlan"],
        ["parameters", "interfaces"],
    ]


@pytest.mark.parametrize("parameters", [None, 1, "text", [], [PARAMETERS, PARAMETERS], [[PARAMETERS]], [1]])
def test_parameters_that_are_no_object_are_named(parameters: object) -> None:
    assert faults(body(parameters)) == [["parameters"]]


@pytest.mark.parametrize("string", ["\x00", "a\x00b", "\ud800", "\udc00\ud800"])
@pytest.mark.parametrize(
    ("place", "loc"),
    [
        (lambda bad: {"username": bad}, ["username"]),
        (lambda bad: {"password": bad}, ["password"]),
        (lambda bad: {"more": bad}, []),
        (lambda bad: {"more": {"deep": [1, bad]}}, [1]),
        (lambda bad: {bad: 1}, []),
        (lambda bad: {"more": {bad: 1}}, []),
    ],
    ids=["username", "password", "unknown", "deep", "key", "deep key"],
)
def test_a_string_that_cannot_be_stored_is_named_by_its_place(string: str, place: Any, loc: list[object]) -> None:
    assert faults(body(PARAMETERS | place(string))) == [["parameters", *loc]]


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert json.loads(parse_request(body(PARAMETERS | {"password": "🎉"})).parameters)["password"] == "🎉"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_json_has_not_are_malformed(number: str) -> None:
    with pytest.raises(BadRequestError):
        parse_request(body(PARAMETERS | {"more": "?"}).replace(b'"?"', number.encode()))


@pytest.mark.parametrize("depth", [1, 50, 98])
def test_a_nested_parameter_goes_through(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    assert_goes_through(parse_request(body(PARAMETERS | {"more": "?"}).replace(b'"?"', deep)))


@pytest.mark.parametrize("depth", [99, 150, 199, 500, 990, 5_000, 30_000])
@pytest.mark.parametrize("brackets", [(b"[", b"]"), (b'{"a":', b"}")])
def test_absurd_nesting_is_malformed(depth: int, brackets: tuple[bytes, bytes]) -> None:
    opening, closing = brackets
    deep = opening * depth + b"1" + closing * depth
    with pytest.raises(BadRequestError):
        parse_request(body(PARAMETERS | {"more": "?"}).replace(b'"?"', deep))


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert_goes_through(parse_request(body(PARAMETERS | {"more": [[]] * 1000})))


@given(nearly_good)
def test_nothing_of_the_request_is_echoed(value: dict[str, Any]) -> None:
    request = {"timeoutInSeconds": SECRET, "parameters": {SECRET: "\x00", "vlan": SECRET, "username": [SECRET]}}
    with pytest.raises(ApiError) as refused:
        parse_request(json.dumps(request | {SECRET: value}).encode())
    assert SECRET not in json.dumps(refused.value.body())
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("serial", ["ABC123", "abcdef", "000000", "A" * 128])
def test_a_serial_is_accepted(serial: str) -> None:
    assert parse_serial(serial) == serial


@pytest.mark.parametrize(
    "text", ["", "ABC12", "A" * 129, "ABC-123", "ABC 123", "ABC123\n", "ÄBC123", "ABC12٣", "ABC123\x00"]
)
def test_what_is_no_serial_is_a_device_that_nobody_knows(text: str) -> None:
    with pytest.raises(EquipmentNotFoundError):
        parse_serial(text)


@given(st.text(st.characters()) | st.from_regex(r"[a-zA-Z0-9]{1,130}"))
def test_a_serial_is_6_to_128_letters_and_digits_of_ascii(text: str) -> None:
    good = 6 <= len(text) <= 128 and text.isascii() and text.isalnum()
    if good:
        assert parse_serial(text) == text
    else:
        with pytest.raises(EquipmentNotFoundError):
            parse_serial(text)
