"""Sealing and opening: what goes in comes out, for its own task and with the right key only."""

import json
from base64 import urlsafe_b64decode
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.bindings._rust import openssl
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from messaging.sealing import sealer
from messaging.sealing.keys import KeyFileError, read_private_keys, read_public_key
from messaging.sealing.opener import Opener, OpenError
from messaging.sealing.sealer import Sealer
from messaging.sealing.suite import FORM, HPKE, wrap
from tests.seals import KeyPair, make_keys

TASK, SERIAL = UUID("0197c9d0-0000-7000-8000-000000000001"), "ABC1234"
PARAMETERS = '{"username":"admin","password":"hunter2","vlan":534,"interfaces":[1,2,3,4]}'
ODD = [
    "{}",
    '{"username":"k\u00e4se \U0001f9c0","password":"","interfaces":[]}',
    json.dumps({"username": "a", "password": "p" * 60_000, "interfaces": []}),
]


@pytest.fixture
def keys(tmp_path: Path) -> KeyPair:
    return make_keys(tmp_path)


def sealed(keys: KeyPair, parameters: str = PARAMETERS) -> str:
    return Sealer(keys.public).seal(parameters, TASK, SERIAL)


def test_the_wrapping_is_rfc_9180s() -> None:
    """Appendix A.2.1, base mode of this suite; its plain text is bound to "Count-0", which the public API cannot do."""
    private = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb")
    )
    encapsulated = bytes.fromhex("1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a")
    ciphertext = bytes.fromhex(
        "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28"
    )
    info = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
    opened = openssl.hpke._decrypt_with_aad(HPKE, encapsulated + ciphertext, private, info, b"Count-0")
    assert opened == b"Beauty is truth, truth beauty"


def test_the_encryption_is_nists() -> None:
    """Test case 16 of the GCM specification that SP 800-38D took over (256-bit key, 96-bit nonce, associated data)."""
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308")
    plain = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    associated = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    encrypted = AESGCM(key).encrypt(bytes.fromhex("cafebabefacedbaddecaf888"), plain, associated)
    assert encrypted.hex() == (
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    )


@pytest.mark.parametrize("parameters", [PARAMETERS, *ODD], ids=["usual", "empty", "not ASCII", "long"])
def test_what_is_sealed_is_opened_as_it_was(keys: KeyPair, parameters: str) -> None:
    value = sealed(keys, parameters)
    assert list(json.loads(value)) == ["sealed"]
    assert "hunter2" not in value
    opener = Opener([keys.private])
    assert opener.missing_key(value) is None
    assert opener.open(value, TASK, SERIAL) == parameters


def test_a_sealed_value_is_no_longer_than_it_must_be(keys: KeyPair) -> None:
    assert len(sealed(keys)) <= 4 / 3 * (len(PARAMETERS) + 20) + 142


def test_what_is_not_sealed_is_left_as_it_is(keys: KeyPair) -> None:
    for opener in (Opener([]), Opener([keys.private])):
        for parameters in (PARAMETERS, *ODD, '{"sealed":"a","username":"admin"}', f'{sealed(keys)[:-1]},"more":1}}'):
            assert opener.missing_key(parameters) is None
            assert opener.open(parameters, TASK, SERIAL) == parameters


def test_it_opens_for_its_own_task_and_device_only(keys: KeyPair) -> None:
    value, opener = sealed(keys), Opener([keys.private])
    for task_id, serial in ((uuid4(), SERIAL), (TASK, "ABC1235"), (TASK, SERIAL.lower())):
        with pytest.raises(OpenError):
            opener.open(value, task_id, serial)


def test_nothing_of_it_can_be_changed(keys: KeyPair) -> None:
    value, opener = sealed(keys), Opener([keys.private])
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    [(start, end)] = [(found.start(2), found.end(3)) for found in [FORM.fullmatch(value)] if found]
    for place in range(start, end):
        # Of the last character of a part some bits may mean nothing.
        other = alphabet[(alphabet.find(value[place]) + 32) % 64]
        changed = value[:place] + other + value[place + 1 :]
        with pytest.raises(OpenError):
            opener.open(changed, TASK, SERIAL)


@pytest.mark.parametrize(
    "broken",
    ['{"sealed":""}', '{"sealed":1}', '{"sealed":null}', '{"sealed":"2.0.a.b"}', '{"sealed":"1.0123456789abcdef.a.b"}'],
)
def test_what_only_looks_sealed_is_not_opened(keys: KeyPair, broken: str) -> None:
    opener = Opener([keys.private])
    assert opener.missing_key(broken) is None, "no key could open it"
    with pytest.raises(OpenError):
        opener.open(broken, TASK, SERIAL)


def test_parts_of_two_sealed_values_make_no_third(keys: KeyPair, tmp_path: Path) -> None:
    foreign = make_keys(tmp_path / "foreign")
    [mine, theirs] = [FORM.fullmatch(sealed(each)) for each in (keys, foreign)]
    assert mine
    assert theirs
    opener = Opener([keys.private, foreign.private])
    for key, wrapped, hidden in (
        (theirs[1], mine[2], mine[3]),
        (mine[1], theirs[2], mine[3]),
        (mine[1], mine[2], theirs[3]),
        (theirs[1], mine[2], theirs[3]),
    ):
        with pytest.raises(OpenError):
            opener.open(f'{{"sealed":"1.{key}.{wrapped}.{hidden}"}}', TASK, SERIAL)


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_any_text_in_the_place_of_a_sealed_value_is_refused(text: str) -> None:
    with pytest.raises(OpenError):
        Opener([]).open(f'{{"sealed":{json.dumps(text)}}}', TASK, SERIAL)


@pytest.mark.parametrize("forged", ["[]", '{}} , {"a":1}', "", '{"a":1', "\x00"])
def test_what_the_holder_of_the_public_key_sealed_is_still_one_json_object(keys: KeyPair, forged: str) -> None:
    value = sealed(keys, forged)
    with pytest.raises(OpenError):
        Opener([keys.private]).open(value, TASK, SERIAL)


def test_the_key_that_is_needed_is_told(keys: KeyPair, tmp_path: Path) -> None:
    other = make_keys(tmp_path / "other")
    value = sealed(keys)
    for opener in (Opener([]), Opener([other.private])):
        assert opener.missing_key(value) == keys.id
        with pytest.raises(OpenError):
            opener.open(value, TASK, SERIAL)
    assert Opener([other.private, keys.private]).open(value, TASK, SERIAL) == PARAMETERS


def test_a_key_that_comes_later_is_found(keys: KeyPair, tmp_path: Path) -> None:
    other, value = make_keys(tmp_path / "other"), sealed(keys)
    file = tmp_path / "private.pem"
    file.write_bytes(other.private.read_bytes())
    opener = Opener([file])
    assert opener.missing_key(value)
    file.write_bytes(b"half of a key")
    with capture_logs() as logs:
        opener.read_again()
    assert [log["event"] for log in logs] == ["seal.key_unreadable"]
    file.write_bytes(keys.private.read_bytes())
    opener.read_again()
    assert opener.open(value, TASK, SERIAL) == PARAMETERS
    assert opener.missing_key(Sealer(other.public).seal(PARAMETERS, TASK, SERIAL)) is None, "the one before stays"


def test_a_data_key_serves_so_many_tasks_and_no_nonce_comes_twice(keys: KeyPair) -> None:
    made, opener = Sealer(keys.public, most=3), Opener([keys.private])
    found = [FORM.fullmatch(made.seal(PARAMETERS, TASK, SERIAL)) for _ in range(7)]
    parts = [(each[2], urlsafe_b64decode(each[3][:8])[:4]) for each in found if each]
    assert len({wrapped for wrapped, _ in parts}) == 3
    assert len(set(parts)) == 7
    assert {opener.open(each[0], TASK, SERIAL) for each in found if each} == {PARAMETERS}


def test_a_data_key_serves_for_so_long(keys: KeyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    time = 1000.0
    monkeypatch.setattr(sealer, "now", lambda: time)
    made = Sealer(keys.public, seconds=60)

    def wrapped() -> str:
        found = FORM.fullmatch(made.seal(PARAMETERS, TASK, SERIAL))
        assert found
        return found[2]

    first = wrapped()
    time += 59
    assert wrapped() == first
    time += 1
    assert wrapped() != first


def test_a_new_public_key_is_taken_with_the_next_data_key_and_a_broken_one_is_not(tmp_path: Path) -> None:
    old, new = make_keys(tmp_path / "old"), make_keys(tmp_path / "new")
    file = tmp_path / "public.pem"
    file.write_bytes(old.public.read_bytes())
    made = Sealer(file, most=1)

    def sealed_for(pair: KeyPair) -> bool:
        return Opener([pair.private]).missing_key(made.seal(PARAMETERS, TASK, SERIAL)) is None

    assert sealed_for(old)
    file.write_bytes(b"half of a key")
    with capture_logs() as logs:
        assert sealed_for(old)
    assert [log["event"] for log in logs] == ["seal.key_unreadable"]
    file.write_bytes(new.public.read_bytes())
    with capture_logs() as logs:
        assert sealed_for(new)
    assert [log["event"] for log in logs] == ["seal.key_changed"]


def test_unwrapped_data_keys_are_kept(keys: KeyPair) -> None:
    made, opener = Sealer(keys.public), Opener([keys.private])
    for _ in range(5):
        opener.open(made.seal(PARAMETERS, TASK, SERIAL), TASK, SERIAL)
    assert opener._data_key.cache_info()[:3] == (4, 1, 1000)


def test_a_file_that_holds_no_such_key_is_refused_and_nothing_of_it_is_told(keys: KeyPair, tmp_path: Path) -> None:
    signing = Ed25519PrivateKey.generate()
    locked = X25519PrivateKey.generate()
    wrong = {
        "other.pem": signing.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "other.pub": signing.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "locked.pem": locked.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2")),
        "empty": b"",
        "text": b"hunter2",
        "short": keys.public.read_bytes()[:60],
        "zero": zero_key(),
    }
    files = [tmp_path / name for name in wrong]
    for file, content in zip(files, wrong.values(), strict=True):
        file.write_bytes(content)
    for file in [*files, keys.private, tmp_path, tmp_path / "hunter2", Path("a\0hunter2")]:
        with pytest.raises(KeyFileError) as refusal:
            read_public_key(file)
        assert "hunter2" not in str(refusal.value)
    for file in [*files, keys.public, tmp_path, tmp_path / "hunter2", Path("a\0hunter2")]:
        with pytest.raises(KeyFileError) as refusal:
            read_private_keys([keys.private, file])
        assert "hunter2" not in str(refusal.value)


def zero_key() -> bytes:
    """A point of small order: what is wrapped for it, everybody could open."""
    return openssl.x25519.from_public_bytes(bytes(32)).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_wrapped_key_has_the_length_that_the_form_asks_for(keys: KeyPair) -> None:
    assert len(wrap(bytes(32), read_public_key(keys.public))) == 80
