"""What schemathesis does not know of our bodies."""

import json
from typing import Any

import schemathesis

NDJSON = "application/x-ndjson"


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Write whole numbers as such: to JSON Schema 14.0 is one, to the contract it is none."""
    return _whole(body)


@schemathesis.serializer(NDJSON)
def write_lines(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """Write a list as lines; what is no list is one line."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in (value if isinstance(value, list) else [value]))


@schemathesis.deserializer(NDJSON)
def read_lines(context: schemathesis.DeserializationContext, response: schemathesis.Response) -> list[Any]:
    """Read lines as a list."""
    return [json.loads(line) for line in response.content.splitlines()]


def _whole(value: Any) -> Any:
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {key: _whole(item) for key, item in value.items()}
        case list():
            return [_whole(item) for item in value]
    return value
