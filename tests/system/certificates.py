"""Certificates for the private servers, made by the script that makes them for the containers, too."""

import ssl
import subprocess
import sys
from pathlib import Path

from runtime.tls import Files
from tests.system.spawning import ROOT, base_environment

SERVERS = ("service_a", "service_b", "postgres", "rabbitmq")


class Certificates:
    """A private CA and a certificate for each server, in a folder; those that are there already stay."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        subprocess.run(
            [sys.executable, "-m", "docker.certificates", folder, *SERVERS],
            env=base_environment(),
            cwd=ROOT,
            check=True,
        )

    @property
    def ca(self) -> Path:
        """The certificate that clients believe."""
        return self._folder / "ca" / "ca.pem"

    def certificate(self, server: str) -> Path:
        """A server's certificate."""
        return self._folder / server / "certificate.pem"

    def key(self, server: str) -> Path:
        """A server's key."""
        return self._folder / server / "key.pem"

    def files(self, server: str) -> Files:
        """A server's certificate and key."""
        return Files(self.certificate(server), self.key(server), None, ("certificate", "key", "CA"))

    def environment(self, server: str) -> dict[str, str]:
        """What makes a process of ours speak TLS."""
        return {"TLS_CERT_FILE": str(self.certificate(server)), "TLS_KEY_FILE": str(self.key(server))}

    def client(self) -> ssl.SSLContext:
        """Make a client's context."""
        return ssl.create_default_context(cafile=self.ca)
