"""The configurator's side: opening."""

import json
from base64 import urlsafe_b64decode
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from uuid import UUID

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from messaging.messages import is_object_text
from messaging.sealing.keys import KeyFileError, read_private_keys
from messaging.sealing.suite import COUNTER_BYTES, FORM, NONCE, bound_to, is_sealed, unwrap

log = structlog.stdlib.get_logger(__name__)

DATA_KEYS = 1000
"""How many unwrapped ones are kept: each serves up to 10,000 tasks."""


class OpenError(Exception):
    """A sealed value is another task's, tampered with, or of somebody else's making."""


class Opener:
    """Opens sealed parameters with the private keys of these files; what is not sealed is left as it is.

    Raises `KeyFileError` at first.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._keys = read_private_keys(files)
        self._data_key = lru_cache(DATA_KEYS)(self._unwrap)

    def missing_key(self, parameters: str) -> str | None:
        """Tell the id of the key that is needed and not here; None where none is."""
        if not is_sealed(parameters) or not (found := FORM.fullmatch(parameters)) or found[1] in self._keys:
            return None
        return found[1]

    def read_again(self) -> Collection[str]:
        """Take new keys from the files, and tell the ids of all; those that were here stay.

        Files that cannot be read change nothing, loudly.
        """
        try:
            self._keys |= read_private_keys(self._files)
        except KeyFileError as error:
            log.error("seal.key_unreadable", variable="SEAL_KEY_FILE", error=str(error))
        return self._keys.keys()

    def open(self, parameters: str, task_id: UUID, equipment_id: str) -> str:
        """Give the parameters (JSON text) of this task as they were before they were sealed. Raises `OpenError`."""
        if not is_sealed(parameters):
            return parameters
        found = FORM.fullmatch(parameters)
        if not found:
            if json.loads(parameters).keys() == {"sealed"}:
                raise OpenError
            return parameters  # Somebody's own parameters, and one of them is called so.
        key, wrapped, hidden = found.groups()
        try:
            binary = _binary(hidden)
            counter, ciphertext = binary[:COUNTER_BYTES], binary[COUNTER_BYTES:]
            plain = self._data_key(key, wrapped).decrypt(NONCE + counter, ciphertext, bound_to(task_id, equipment_id))
            opened = plain.decode()
        except (InvalidTag, KeyError, ValueError):
            raise OpenError from None
        if not is_object_text(opened):  # Whoever has the public key can seal anything.
            raise OpenError
        return opened

    def _unwrap(self, key: str, wrapped: str) -> AESGCM:
        return AESGCM(unwrap(_binary(wrapped), self._keys[key]))


def _binary(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
