"""Keys to seal and open with, for tests."""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from messaging.sealing.keys import key_id, read_public_key

IDEMPOTENCY_SECRET = "an idempotency secret"
"""What a web process that seals must have besides."""


@dataclass(frozen=True)
class KeyPair:
    """The files of one key pair."""

    private: Path
    public: Path

    @property
    def sealing(self) -> dict[str, str]:
        """The variables of a web process that seals."""
        return {"SEAL_PUBLIC_KEY_FILE": str(self.public), "IDEMPOTENCY_SECRET": IDEMPOTENCY_SECRET}

    @property
    def id(self) -> str:
        """What a sealed value calls it."""
        return key_id(read_public_key(self.public))


def make_keys(folder: Path) -> KeyPair:
    """Make a key pair."""
    folder.mkdir(exist_ok=True)
    key = X25519PrivateKey.generate()
    pair = KeyPair(folder / "seal.key", folder / "seal.pub")
    pair.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    pair.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return pair
