"""The wrapping of data keys and the form of a sealed value: what both sides must do alike."""

import re
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

HPKE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
INFO = b"cpe-configurator: data key of parameters, 1"
"""What a wrapped key is for, and no other use of the same key pair."""
DATA_KEY_BYTES = 32
COUNTER_BYTES = 4
NONCE = bytes(8)
"""The beginning of each nonce, before the counter: a data key belongs to one sealer, which counts."""

BEGINNING = '{"sealed":'
FORM = re.compile(r'\{"sealed":"1\.([0-9a-f]{16})\.([A-Za-z0-9_-]{107})\.([A-Za-z0-9_-]{27,})"\}', re.ASCII)
"""A sealed value: the key's id, the wrapped data key, the counter with the ciphertext."""


def is_sealed(parameters: str) -> bool:
    """Tell whether parameters look sealed; a client's own may, too."""
    return parameters.startswith(BEGINNING)


def wrap(data_key: bytes, key: X25519PublicKey) -> bytes:
    """Encrypt a data key for the holder of the private key."""
    return HPKE.encrypt(data_key, key, INFO)


def unwrap(wrapped: bytes, key: X25519PrivateKey) -> bytes:
    """Undo it. Raises `cryptography.exceptions.InvalidTag`."""
    return HPKE.decrypt(wrapped, key, INFO)


def bound_to(task_id: UUID, equipment_id: str) -> bytes:
    """Give the associated data of a task: its id, which is always as long, and its device's serial."""
    return task_id.bytes + equipment_id.encode()
