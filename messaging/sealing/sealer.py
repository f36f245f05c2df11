"""Service B's side: sealing."""

import math
import secrets
from base64 import urlsafe_b64encode
from pathlib import Path
from uuid import UUID

import structlog
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from messaging.sealing.keys import KeyFileError, key_id, read_public_key
from messaging.sealing.suite import COUNTER_BYTES, DATA_KEY_BYTES, NONCE, bound_to, wrap
from runtime.clock import now

log = structlog.stdlib.get_logger(__name__)

MOST = 10_000
SECONDS = 60.0
"""How many tasks, and for how long, one data key serves. So long it takes until another public key is in force."""


class Sealer:
    """Seals parameters for the key in a file, which is read again for each data key. Raises `KeyFileError` at first.

    A file that cannot be read later leaves the key before it in force, loudly: tasks are accepted all the same.
    """

    def __init__(self, file: Path, *, most: int = MOST, seconds: float = SECONDS) -> None:
        self._file = file
        self._most = most
        self._seconds = seconds
        self._key = read_public_key(file)
        # What the data key has sealed, and until when it serves.
        self._count, self._until = 0, -math.inf
        self._renew()

    def seal(self, parameters: str, task_id: UUID, equipment_id: str) -> str:
        """Seal the parameters (JSON text) of one task: JSON text again."""
        if self._count >= self._most or now() >= self._until:
            self._key = self._read_again()
            self._renew()
        self._count += 1
        counter = self._count.to_bytes(COUNTER_BYTES)
        hidden = self._data_key.encrypt(NONCE + counter, parameters.encode(), bound_to(task_id, equipment_id))
        return f'{self._head}{_text(counter + hidden)}"}}'

    def _renew(self) -> None:
        data_key = secrets.token_bytes(DATA_KEY_BYTES)
        self._data_key = AESGCM(data_key)
        self._head = f'{{"sealed":"1.{key_id(self._key)}.{_text(wrap(data_key, self._key))}.'
        self._count, self._until = 0, now() + self._seconds

    def _read_again(self) -> X25519PublicKey:
        try:
            key = read_public_key(self._file)
        except KeyFileError as error:
            log.error("seal.key_unreadable", variable="SEAL_PUBLIC_KEY_FILE", error=str(error), still=key_id(self._key))
            return self._key
        if key_id(key) != key_id(self._key):
            log.info("seal.key_changed", key=key_id(key))
        return key


def _text(binary: bytes) -> str:
    return urlsafe_b64encode(binary).rstrip(b"=").decode()
