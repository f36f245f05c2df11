"""`make up TLS=1`: every link of the private system by TLS, and certificates that stay."""

from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.conftest import eventually
from tests.system.certificates import SERVERS, Certificates
from tests.system.system import Plan, System, running
from tests.system.up import plan_from_environment

BODY = {"timeoutInSeconds": 1, "parameters": {"username": "admin", "password": "admin", "interfaces": []}}


async def configure(system: System, certificates: Certificates) -> str:
    """Submit a task by TLS, and tell its final answer."""
    path = f"{system.service_b.url}/api/v1/equipment/cpe/ABC1234"
    context = certificates.client()
    async with aiohttp.ClientSession() as client:
        async with client.post(path, json=BODY, ssl=context) as response:
            task = (await response.json())["taskId"]
        said = ""

        async def has_ended() -> bool:
            nonlocal said
            async with client.get(f"{path}/task/{task}", ssl=context) as response:
                said = await response.text()
            return '"code":204' not in said

        await eventually(has_ended)
    return said


async def test_a_task_completes_by_tls_on_every_link(tmp_path: Path) -> None:
    with running(tmp_path, Plan(tls=True, service_a={"RESPONSE_DELAY_SECONDS": "0"})) as system:
        certificates = Certificates(tmp_path / "certificates")
        assert await configure(system, certificates) == '{"code":200,"message":"Completed"}'
        assert system.service_b.url.startswith("https://")
        for process in (system.service_a, system.service_b):
            with pytest.raises(aiohttp.ClientError):
                async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{process.port}/"):
                    pass
        environment = system.configurator.environment | system.service_b.environment
        assert environment["SERVICE_A_URL"].startswith("https://")
        assert environment["AMQP_URL"].startswith("amqps://")
        assert "sslmode=verify-full" in environment["DATABASE_URL"]
        assert system.amqp_url.startswith("amqps://")


def test_certificates_are_made_once_and_for_their_servers(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.pem")}
    assert len(before) == 2 + 3 * len(SERVERS)
    Certificates(tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.pem")} == before
    assert all(not file.stat().st_mode & 0o077 for file in tmp_path.rglob("*key.pem"))
    made = x509.load_pem_x509_certificate(certificates.certificate("rabbitmq").read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["rabbitmq", "localhost"]
    # One that is missing, or another CA's, is made anew; the others stay.
    certificates.certificate("postgres").unlink()
    certificates.certificate("service_a").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    Certificates(tmp_path)
    changed = {file for file in before if file.read_bytes() != before[file]}
    assert {file.parent.name for file in changed} == {"postgres", "service_a"}


@pytest.mark.parametrize(("value", "tls"), [("", False), ("0", False), ("1", True)])
def test_tls_is_asked_for_by_a_variable(value: str, tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLS", value)
    assert plan_from_environment().tls is tls
