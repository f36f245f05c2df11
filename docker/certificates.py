"""A private CA, and a certificate for each server: made where there are none yet, or where they are about to expire.

`python -m docker.certificates FOLDER NAME…` makes, for the servers of this host:

    FOLDER/ca/ca.pem    ca.key.pem           what everybody believes, and what signs
    FOLDER/NAME/ca.pem  certificate.pem  key.pem
"""

import ipaddress
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
DAYS = 397
RENEW_DAYS = 30
HERE = ("localhost", "127.0.0.1", "::1")

Chown = Callable[[Path, int, int], None]


class Authority:
    """The CA whose files lie in `folder`."""

    def __init__(self, folder: Path, chown: Chown = os.chown) -> None:
        self._chown = chown
        file, key = folder / "ca.pem", folder / "ca.key.pem"
        if not file.exists():
            write(key, _pem(private := ec.generate_private_key(ec.SECP256R1())), 0o600)
            write(file, _self_signed(private), 0o644)
        self.pem = file.read_bytes()
        self._certificate = x509.load_pem_x509_certificate(self.pem)
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)  # noqa: S101 - it is ours
        self._key = loaded

    def tell(self, folder: Path) -> None:
        """Put our certificate where somebody who believes us looks."""
        if not (folder / "ca.pem").exists() or (folder / "ca.pem").read_bytes() != self.pem:
            write(folder / "ca.pem", self.pem, 0o644)

    def issue(self, folder: Path, hosts: Sequence[str], owner: int | None = None) -> bool:
        """Put a certificate for these hosts and its key, `owner`'s alone, in a folder; False if a good one is there."""
        self.tell(folder)
        if self._is_good(folder / "certificate.pem", hosts):
            return False
        private = ec.generate_private_key(ec.SECP256R1())
        signed = (
            _builder(_name(hosts[0]), self._certificate.subject, private.public_key(), DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        give = None if owner is None else lambda file: self._chown(file, owner, owner)
        write(folder / "key.pem", _pem(private), 0o400, give)
        write(folder / "certificate.pem", signed.public_bytes(serialization.Encoding.PEM), 0o444, give)
        return True

    def _is_good(self, file: Path, hosts: Sequence[str]) -> bool:
        if not file.exists():
            return False
        there = x509.load_pem_x509_certificate(file.read_bytes())
        names = there.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        left = there.not_valid_after_utc - datetime.now(UTC)
        is_ours = there.issuer == self._certificate.subject
        return is_ours and list(names) == [_general(host) for host in hosts] and left.days > RENEW_DAYS


def _self_signed(key: ec.EllipticCurvePrivateKey) -> bytes:
    # Each CA has a name of its own: two of one name are taken for each other.
    name = _name(f"CPE configurator {datetime.now(UTC):%Y-%m-%d %H:%M:%S}")
    usage = x509.KeyUsage(*(False,) * 5, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False)
    signed = (
        _builder(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return signed.public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # Not all clocks are right.
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def write(file: Path, data: bytes, mode: int, give: Callable[[Path], None] | None = None) -> None:
    """Write a file that is whole, and its reader's alone, from when it has its name."""
    new = file.with_name(f".{file.name}")
    new.unlink(missing_ok=True)
    new.touch(0o600)
    new.write_bytes(data)
    new.chmod(mode)
    if give:
        give(new)
    new.replace(file)


def main(folder: Path, names: Sequence[str]) -> None:
    """Make what is missing, for servers on this host."""
    for each in ("ca", *names):
        (folder / each).mkdir(0o700, parents=True, exist_ok=True)
    authority = Authority(folder / "ca")
    for name in names:
        authority.issue(folder / name, (name, *HERE))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
