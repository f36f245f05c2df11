"""The passwords of a new deployment."""

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from docker.first_start import HANDED_OUT, KEPT, hand_out
from messaging.sealing.opener import Opener
from messaging.sealing.sealer import Sealer
from messaging.settings import BrokerSettings


@pytest.fixture
def owners(tmp_path: Path) -> Iterator[dict[str, int]]:
    """Who was given what; only root may give anything away."""
    given: dict[str, int] = {}

    def chown(file: Path, user: int, group: int) -> None:
        assert user == group
        # It is closed before it is anybody's, and whole before it has its name.
        assert file.stat().st_mode & 0o777 == 0o400
        assert file.name.startswith(".")
        given[f"{file.parent.name}/{file.name[1:]}"] = user

    hand_out(tmp_path, BrokerSettings.model_construct(), chown)
    yield given
    before = contents(tmp_path)
    hand_out(tmp_path, BrokerSettings.model_construct(), chown)
    after = contents(tmp_path)
    assert before.pop("rabbitmq/definitions.json") != after.pop("rabbitmq/definitions.json"), "salted anew"
    assert before == after, "made twice"


def contents(volume: Path) -> dict[str, str]:
    return {str(file.relative_to(volume)): file.read_text() for file in volume.rglob("*") if file.is_file()}


def test_each_service_gets_its_own_and_no_other_secret(tmp_path: Path, owners: dict[str, int]) -> None:
    files = contents(tmp_path)
    handed = {f"{service}/{name}" for service, (_, names) in HANDED_OUT.items() for name in names}
    assert set(owners) == handed | {"rabbitmq/definitions.json"}
    assert {name for name in files if not name.startswith(KEPT)} == set(owners)
    assert files["service_b/rmq_password"] != files["service_b_results/rmq_password"]
    assert files["service_b/postgres_password"] == files["migrate/service_password"]
    assert files["service_b_results/lease_token"] == files["configurator/lease_token"]
    sealed = Sealer(tmp_path / "service_b" / "seal.pub").seal("{}", UUID(int=1), "DEVICE1")
    assert Opener([tmp_path / "configurator" / "seal.key"]).open(sealed, UUID(int=1), "DEVICE1") == "{}"
    for service in HANDED_OUT:
        own = [text for name, text in files.items() if name.startswith(f"{service}/")]
        assert len(set(own)) == len(own), service
    kept = {text for name, text in files.items() if name.startswith(KEPT)}
    assert len(kept) == len([name for name in files if name.startswith(KEPT)]), "no two are the same"
    assert all(len(text) >= 43 for text in kept), "256 bits"
    assert (tmp_path / KEPT).stat().st_mode & 0o777 == 0o700
    assert all(not file.stat().st_mode & 0o077 for file in tmp_path.rglob("*") if file.is_file())


def test_the_broker_is_told_of_its_users_without_their_passwords(tmp_path: Path, owners: dict[str, int]) -> None:
    told = (tmp_path / "rabbitmq" / "definitions.json").read_text()
    tags = {user["name"]: user["tags"] for user in json.loads(told)["users"]}
    assert tags == {"web": [], "results": [], "configurator": [], "operator": ["administrator"]}
    assert not [text for name, text in contents(tmp_path).items() if name.startswith(KEPT) and text in told]
