"""The wire messages: what goes in comes out, other versions are told apart, and no value leaks from a bad one."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.messages import ConfigureTask, DecodeError, Message, Outcome, OutcomeKind

SECRET = "hunter2-Secret"

text = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
attempts = st.integers(1, 2**31 - 1)
seconds = st.floats(0, 10**8)

tasks = st.builds(
    ConfigureTask,
    task_id=st.uuids(),
    attempt=attempts,
    equipment_id=text,
    timeout_in_seconds=st.integers(1, 3600),
    time_limit_seconds=seconds,
    parameters=st.dictionaries(text, values, max_size=5).map(json.dumps),
    sealed_for=st.none() | st.uuids(),
)
outcomes = st.builds(
    Outcome,
    task_id=st.uuids(),
    attempt=attempts,
    kind=st.sampled_from(OutcomeKind),
    lease=st.none() | st.uuids(),
    reason=text,
    hold_seconds=seconds,
    retry_after_seconds=st.none() | seconds,
)

TASK: dict[str, Any] = {
    "v": 1,
    "task_id": str(uuid4()),
    "attempt": 1,
    "equipment_id": "ABC123",
    "timeout_in_seconds": 14,
    "time_limit_seconds": 89.0,
    "parameters": json.dumps({"username": "admin", "password": SECRET}),
}
OUTCOME: dict[str, Any] = {"v": 1, "task_id": str(uuid4()), "attempt": 1, "kind": "success"}


def encode(fields: object) -> bytes:
    return json.dumps(fields).encode()


@given(tasks | outcomes)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    assert type(message).decode(message.encode()) == message


@given(tasks | outcomes)
def test_the_wire_format_is_json_with_the_version(message: Message) -> None:
    fields = json.loads(message.encode())
    assert fields["v"] == (2 if isinstance(message, ConfigureTask) else 1)
    assert UUID(fields["task_id"]) == message.task_id


@given(tasks | outcomes, st.dictionaries(text.map("new_".__add__), values, min_size=1, max_size=3))
def test_fields_of_a_later_version_are_ignored(message: Message, more: dict[str, Any]) -> None:
    assert type(message).decode(encode(json.loads(message.encode()) | more)) == message


@given(tasks)
def test_what_was_sealed_for_another_task_says_so_and_what_was_not_says_nothing(task: ConfigureTask) -> None:
    assert json.loads(task.encode()).get("sealed_for") == (task.sealed_for and str(task.sealed_for))
    assert b"sealed_for" not in task.model_copy(update={"sealed_for": None, "parameters": "{}"}).encode()


@given(tasks)
def test_a_task_of_each_version_is_read(task: ConfigureTask) -> None:
    for version in (1, 2, 3, 4):
        read = ConfigureTask.decode(encode(json.loads(task.encode()) | {"v": version}))
        assert read == task.model_copy(update={"v": version})


@pytest.mark.parametrize("kind", [ConfigureTask, Outcome])
@given(body=st.binary())
def test_garbage_is_refused_with_its_raw_bytes(kind: type[Message], body: bytes) -> None:
    with pytest.raises(DecodeError) as refused:
        kind.decode(body)
    assert refused.value.body == body
    assert refused.value.reason


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        (ConfigureTask, {"v": 5}, "v"),
        (ConfigureTask, {"v": SECRET}, "v"),
        (ConfigureTask, {"task_id": SECRET}, "task_id"),
        (ConfigureTask, {"attempt": 0}, "attempt"),
        (ConfigureTask, {"attempt": 2**31}, "attempt"),
        (ConfigureTask, {"attempt": SECRET}, "attempt"),
        (ConfigureTask, {"equipment_id": [SECRET]}, "equipment_id"),
        (ConfigureTask, {"timeout_in_seconds": SECRET}, "timeout_in_seconds"),
        (ConfigureTask, {"time_limit_seconds": -1}, "time_limit_seconds"),
        (ConfigureTask, {"time_limit_seconds": float("nan")}, "time_limit_seconds"),
        (ConfigureTask, {"time_limit_seconds": 1e9}, "time_limit_seconds"),
        (ConfigureTask, {"parameters": SECRET}, "parameters"),
        (ConfigureTask, {"parameters": f'{{"password": "{SECRET}'}, "parameters"),
        (ConfigureTask, {"parameters": None}, "parameters"),
        (ConfigureTask, {"parameters": [SECRET]}, "parameters"),
        (Outcome, {"v": 0}, "v"),
        (Outcome, {"kind": SECRET}, "kind"),
        (Outcome, {"lease": SECRET}, "lease"),
        (Outcome, {"reason": [SECRET]}, "reason"),
        (Outcome, {"hold_seconds": "x" + SECRET}, "hold_seconds"),
        (Outcome, {"retry_after_seconds": -1}, "retry_after_seconds"),
    ],
)
def test_a_wrong_field_is_named_and_its_value_is_not_shown(
    kind: type[Message], fields: dict[str, Any], field: str
) -> None:
    body = encode((TASK if kind is ConfigureTask else OUTCOME) | fields)
    with pytest.raises(DecodeError) as refused:
        kind.decode(body)
    assert refused.value.body == body
    assert refused.value.reason.startswith(f"{field}: ")
    assert SECRET not in refused.value.reason + str(refused.value) + repr(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("field", ["task_id", "attempt", "equipment_id", "time_limit_seconds", "parameters"])
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(DecodeError, match=f"^{field}: Field required$"):
        ConfigureTask.decode(encode({key: value for key, value in TASK.items() if key != field}))


def test_an_outcome_of_before_the_leases_is_read() -> None:
    assert Outcome.decode(encode(OUTCOME)).lease is None


def test_many_faults_make_a_short_reason() -> None:
    with pytest.raises(DecodeError) as refused:
        ConfigureTask.decode(encode({field: {SECRET: SECRET} for field in TASK}))
    assert len(refused.value.reason) <= 500
    assert SECRET not in refused.value.reason


few = st.sampled_from([UUID(int=1), UUID(int=2)])


@given(few, few, st.integers(1, 3), st.integers(1, 3))
def test_the_message_id_is_unique_per_attempt(one: UUID, other: UUID, first: int, second: int) -> None:
    def message_id(task_id: UUID, attempt: int) -> str:
        return Outcome(task_id=task_id, attempt=attempt, kind=OutcomeKind.SUCCESS).message_id

    assert (message_id(one, first) == message_id(other, second)) == ((one, first) == (other, second))


def test_a_message_cannot_be_changed_and_does_not_show_its_parameters() -> None:
    task = ConfigureTask.decode(encode(TASK))
    assert SECRET not in repr(task)
    with pytest.raises(ValueError, match="frozen"):
        task.attempt = 2  # type: ignore[misc]


@given(st.dictionaries(text, values, max_size=5))
def test_parameters_as_earlier_versions_sent_them_become_text(parameters: dict[str, Any]) -> None:
    task = ConfigureTask.decode(encode(TASK | {"parameters": parameters}))
    assert json.loads(task.parameters) == parameters


def test_the_text_of_parameters_is_not_touched() -> None:
    parameters = '{"vlan":  534, "username":"\u00e9\\u00e9", "n": 1.10, "big": 123456789012345678901234567890}'
    task = ConfigureTask.decode(encode(TASK | {"parameters": parameters}))
    assert task.parameters == parameters
    assert ConfigureTask.decode(task.encode()) == task


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"{}"',
        '{},"timeoutInSeconds":3600',
        '{}}{"timeoutInSeconds":3600',
        "{}{}",
        "{} {}",
        '{"a":1',
        '{"a":1,}',
        "{'a':1}",
        '{"a":"\x01"}',
        "{}//",
        "\ufeff{}",
        '{"a":%s}' % ("[" * 1000 + "]" * 1000),
    ],
)
def test_text_that_is_not_one_object_is_refused_and_smuggles_nothing_into_as_body(text: str) -> None:
    with pytest.raises(DecodeError, match=r"^parameters: .*should be the text of a JSON object$"):
        ConfigureTask.decode(encode(TASK | {"parameters": text}))
