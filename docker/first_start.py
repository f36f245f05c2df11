"""`python -m docker.first_start`: makes the passwords and keys of a new deployment, once, for who needs them.

The volume has a folder for each service of compose.yaml, which sees nothing but its own, a file a secret. A folder that
no service sees keeps them for the next start.
"""

import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from messaging.definitions import definitions, rights
from messaging.settings import BrokerSettings
from runtime.settings import read_settings

VOLUME = Path("/secrets")
KEPT = "kept"
APP, SERVER = 10001, 999
"""The users of our image, and of both servers' images."""

HANDED_OUT: Mapping[str, tuple[int, Mapping[str, str]]] = {
    "postgres": (SERVER, {"postgres_password": "admin"}),
    "migrate": (APP, {"admin_password": "admin", "migrator_password": "migrator", "service_password": "service"}),
    "service_b": (
        APP,
        {
            "postgres_password": "service",
            "rmq_password": "web",
            "seal.pub": "seal.pub",
            "idempotency_secret": "idempotency",
        },
    ),
    "service_b_results": (APP, {"postgres_password": "service", "rmq_password": "results", "lease_token": "lease"}),
    "configurator": (APP, {"rmq_password": "configurator", "lease_token": "lease", "seal.key": "seal.key"}),
    # Whom a person signs in as; the others' passwords are hashes in what it reads at its start.
    "rabbitmq": (SERVER, {"operator_password": "operator"}),
}
"""For each service: who reads its folder, and which secret lies in which file."""


def make_password() -> str:
    """Make a password of 256 bits."""
    return secrets.token_urlsafe(32)


def make_key() -> str:
    """Make the key that opens what service B seals, as PEM."""
    return X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def public_key(private_key: str) -> str:
    """Give the public key of a private one, each as PEM."""
    key = load_pem_private_key(private_key.encode(), password=None).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


MAKERS = {"seal.key": make_key}
"""What is not a password."""
DERIVED = {"seal.pub": ("seal.key", public_key)}
"""What is not kept."""


def hand_out(volume: Path, broker: BrokerSettings, chown: Callable[[Path, int, int], None] = os.chown) -> None:
    """Make what is not there yet, and put everything where it belongs; the files are for their readers alone."""

    def write(file: Path, text: str, owner: int = 0) -> None:
        new = file.with_name(f".{file.name}")
        new.unlink(missing_ok=True)
        new.touch(0o600)
        new.write_text(text)
        if owner:
            new.chmod(0o400)
            chown(new, owner, owner)
        new.replace(file)

    def keep(secret: str) -> str:
        if secret in DERIVED:
            source, derive = DERIVED[secret]
            return derive(keep(source))
        file = volume / KEPT / secret
        if not file.exists():
            write(file, MAKERS.get(secret, make_password)())
        return file.read_text()

    (volume / KEPT).mkdir(0o700, exist_ok=True)
    for service, (reader, files) in HANDED_OUT.items():
        (volume / service).mkdir(0o755, exist_ok=True)
        for name, secret in files.items():
            write(volume / service / name, keep(secret), reader)
    users = {user: keep(user) for user in (*rights(broker), "operator")}
    write(volume / "rabbitmq" / "definitions.json", json.dumps(definitions(broker, users)), SERVER)


def main() -> None:
    """Do it for compose.yaml."""
    hand_out(VOLUME, read_settings(BrokerSettings))


if __name__ == "__main__":
    main()
