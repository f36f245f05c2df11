"""The keys that parameters are sealed for: X25519, each in a PEM file."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from messaging.sealing.suite import wrap

UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm)
"""What `cryptography` raises for a file that is no key, or one with a password."""
PUBLIC = "must be the file of an X25519 public key in PEM"
PRIVATE = "each file must be of an X25519 private key in PEM, without a password"


class KeyFileError(ValueError):
    """A file does not hold the key that it should.

    The text says neither what is in it nor its name: somebody may have put the key itself there.
    """


def key_id(key: X25519PublicKey) -> str:
    """Name a key: the first 16 hexadecimal digits of the SHA-256 of its 32 bytes."""
    return sha256(key.public_bytes_raw()).hexdigest()[:16]


def read_public_key(file: Path) -> X25519PublicKey:
    """Read the key to seal for. Raises `KeyFileError`."""
    try:
        key = load_pem_public_key(_read(file))
        if isinstance(key, X25519PublicKey):
            wrap(b"", key)  # Not every 32 bytes are a key that can be used.
            return key
    except UNREADABLE as error:
        raise _fault(error, PUBLIC) from None
    raise KeyFileError(PUBLIC)


def read_private_keys(files: Sequence[Path]) -> dict[str, X25519PrivateKey]:
    """Read the keys to open with, by their ids. Raises `KeyFileError`."""
    keys: dict[str, X25519PrivateKey] = {}
    for file in files:
        try:
            key = load_pem_private_key(_read(file), password=None)
        except UNREADABLE as error:
            raise _fault(error, PRIVATE) from None
        if not isinstance(key, X25519PrivateKey):
            raise KeyFileError(PRIVATE)
        keys[key_id(key.public_key())] = key
    return keys


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise KeyFileError(f"must be a file that can be read: {error.strerror}") from None


def _fault(error: Exception, wanted: str) -> KeyFileError:
    return error if isinstance(error, KeyFileError) else KeyFileError(wanted)
