"""What the schemas cannot tell schemathesis of our requests."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import schemathesis
from schemathesis import GenerationMode

NDJSON = "application/x-ndjson"
KEY = "Idempotency-Key"
SOON = {
    name: (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
    for hours, name in ((1, "notBefore"), (2, "notAfter"))
}


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], **_: Any) -> None:
    """Make a good request one that can be granted.

    To JSON Schema 14.0 is a whole number, to the contract it is none; a time must lie ahead; another request has
    another key, and lines have none together; nobody makes up a cursor.
    """
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    if isinstance(case.body, dict | list):
        case.body = _whole(case.body)
        for body in case.body if isinstance(case.body, list) else [case.body]:
            if isinstance(body, dict):
                body.update({name: time for name, time in SOON.items() if body.get(name) is not None})
                if "idempotencyKey" in body:
                    body["idempotencyKey"] = _digest(body)
    case.query.pop("cursor", None)
    if case.media_type == NDJSON:
        case.headers.pop(KEY, None)
    elif KEY in case.headers:
        case.headers[KEY] = _digest([case.method, case.path_parameters, case.body])


@schemathesis.check
def good_lines_are_accepted(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """Each line has an answer of its own."""
    if case.meta and case.meta.generation.mode is GenerationMode.POSITIVE and case.media_type == NDJSON:
        assert response.status_code == 200
        assert {line["code"] for line in map(json.loads, response.content.splitlines())} <= {202, 429}


@schemathesis.serializer(NDJSON)
def write_lines(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """Write a list as lines; what is no list is one line."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in (value if isinstance(value, list) else [value]))


@schemathesis.deserializer(NDJSON)
def read_lines(context: schemathesis.DeserializationContext, response: schemathesis.Response) -> list[Any]:
    """Read lines as a list."""
    return [json.loads(line) for line in response.content.splitlines()]


def _digest(request: Any) -> str:
    return hashlib.sha256(repr(request).encode()).hexdigest()


def _whole(value: Any) -> Any:
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {key: _whole(item) for key, item in value.items()}
        case list():
            return [_whole(item) for item in value]
    return value
