"""Files as the lines that are sent."""

import json
from pathlib import Path
from typing import Any

from service_b.client import sheets


def lines(path: Path) -> list[Any]:
    return [json.loads(row.line) for row in sheets.read(path)]


def test_a_csv_file_has_fields_and_parameters_and_empty_cells_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "devices.csv"
    path.write_text(
        "equipmentId,timeoutInSeconds,username,password,vlan,interfaces,ssid,externalId\r\n"
        'ABC1234,14,admin,"a,b",534,1 2 3,Zuhause,order-77\r\n'
        "ABC1235,soon,admin,x,,1;2,,\r\n",
        encoding="utf-8-sig",
    )
    first, second = sheets.read(path)
    assert (first.number, first.device, second.number, second.device) == (1, "ABC1234", 2, "ABC1235")
    told, other = lines(path)
    assert {key: told[key] for key in told if key != "idempotencyKey"} == {
        "equipmentId": "ABC1234",
        "timeoutInSeconds": 14,
        "externalId": "order-77",
        "parameters": {"username": "admin", "password": "a,b", "vlan": 534, "interfaces": [1, 2, 3], "ssid": "Zuhause"},
    }
    # What it cannot be, the service says.
    assert other["timeoutInSeconds"] == "soon"
    assert other["parameters"] == {"username": "admin", "password": "x", "interfaces": "1;2"}


def test_lines_of_json_are_sent_as_they_are_but_with_a_key(tmp_path: Path) -> None:
    path = tmp_path / "tasks.ndjson"
    path.write_text('{"equipmentId": "ABC1234"}\n\n{nonsense\n[1]\n{"equipmentId": 5, "idempotencyKey": "mine"}\n')
    rows = sheets.read(path)
    assert [(row.number, row.device) for row in rows] == [(1, "ABC1234"), (2, ""), (3, ""), (4, "5")]
    assert [row.line for row in rows[1:3]] == [b"{nonsense", b"[1]"]
    assert json.loads(rows[3].line)["idempotencyKey"] == "mine"


def test_the_same_file_has_the_same_keys_and_another_one_others(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.ndjson", "b.ndjson", "c.ndjson")]
    for path, text in zip(paths, ("{}\n{}\n", "{}\n{}\n", "{}\n{} \n"), strict=True):
        path.write_text(text)
    first, same, other = ([line["idempotencyKey"] for line in lines(path)] for path in paths)
    assert first == same == sorted(set(first))
    assert not set(first) & set(other)
