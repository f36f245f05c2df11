"""Which files make a context, and what becomes of it when they are replaced."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typing_extensions import override

from runtime.tls import Files, Reloading, client_context, server_context
from tests.certificates import NAMES, Authority, Pair, files
from tests.conftest import eventually

LOOK_SECONDS = 0.05


class Counting(Reloading):
    """It counts how often it has looked at its files."""

    looks = 0

    @override
    def _look(self) -> list[tuple[int, ...] | None]:
        self.looks += 1
        return super()._look()


@asynccontextmanager
async def watching(tls: Reloading) -> AsyncIterator[None]:
    watch = asyncio.create_task(tls.watch())
    yield
    watch.cancel()
    with suppress(asyncio.CancelledError):
        await watch


def encrypted(authority: Authority, folder: Path) -> Files:
    text = (
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
        "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAhG5jqh1ZlO1gICCAAw\n"
        "-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    pair = authority.issue()
    pair.key.write_text(text)
    return files(pair)


def changed(authority: Authority, change: Callable[[Pair], object]) -> Files:
    pair = authority.issue()
    change(pair)
    return files(pair)


UNFIT: dict[str, tuple[Callable[[Authority, Path], Files], str]] = {
    "no key": (lambda ca, _: Files(ca.issue().certificate, None, None, NAMES), "the key: must be set with"),
    "no certificate": (lambda ca, _: Files(None, ca.issue().key, None, NAMES), "the certificate: must be set with"),
    "a CA alone": (lambda ca, _: files(ca=ca.file), "the certificate: must be set with the CA"),
    "missing": (lambda ca, _: changed(ca, lambda pair: pair.key.unlink()), "the key: must be a file that can be read"),
    "a folder": (lambda ca, folder: files(ca.issue(), folder), "the CA: must be a file that can be read"),
    "another's key": (
        lambda ca, _: Files(ca.issue().certificate, ca.issue().key, None, NAMES),
        r"the certificate: must be PEM, and the key its key, not encrypted \(KEY_VALUES_MISMATCH\)",
    ),
    "no PEM": (
        lambda ca, _: changed(ca, lambda pair: pair.certificate.write_text("x")),
        "the certificate: must be PEM",
    ),
    "half a file": (
        lambda ca, _: changed(ca, lambda pair: pair.key.write_bytes(pair.key.read_bytes()[:-99])),
        "the certificate: must be PEM, and the key its key",
    ),
    "an encrypted key": (encrypted, "the certificate: must be PEM, and the key its key, not encrypted"),
    "no CA": (lambda ca, _: files(ca.issue(), ca.issue().key), "the CA: must be the certificates of CAs, as PEM"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_files_are_named_in_one_line(name: str, authority: Authority, tmp_path: Path) -> None:
    make, said = UNFIT[name]
    with pytest.raises(ValueError, match=f"^{said}[^\n]*$") as raised:
        server_context(make(authority, tmp_path))
    assert "PRIVATE" not in str(raised.value)


def test_what_we_speak(authority: Authority) -> None:
    for context in (server_context(files(authority.issue())), client_context(files())):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert client_context(files(ca=authority.file)).check_hostname
    assert client_context(files(ca=authority.file)).verify_mode is ssl.CERT_REQUIRED
    assert [ca["serialNumber"] for ca in client_context(files(ca=authority.file)).get_ca_certs()] == [
        ca["serialNumber"] for ca in authority.client().get_ca_certs()
    ]


async def test_a_pair_that_is_replaced_makes_a_new_context(authority: Authority) -> None:
    pair = authority.issue()
    tls = Reloading(server_context, files(pair), look_seconds=LOOK_SECONDS)
    first = tls.context
    async with watching(tls):
        with capture_logs() as logs:
            pair.replace(authority.issue())
            await eventually(lambda: tls.context is not first)
        assert [entry["event"] for entry in logs] == ["tls.reloaded"]


@pytest.mark.parametrize("spoil", ["half", "mismatched", "missing"])
async def test_broken_files_leave_the_old_context_and_are_told_of_once(spoil: str, authority: Authority) -> None:
    pair = authority.issue()
    tls = Counting(server_context, files(pair), look_seconds=LOOK_SECONDS)
    first = tls.context
    async with watching(tls):
        with capture_logs() as logs:
            if spoil == "half":
                pair.key.write_bytes(pair.key.read_bytes()[:99])
            elif spoil == "mismatched":
                authority.issue().key.replace(pair.key)
            else:
                pair.certificate.unlink()
            await eventually(lambda: logs)
            told_at = tls.looks
            await eventually(lambda: tls.looks > told_at + 5)
            assert tls.context is first
            assert [(entry["event"], entry["log_level"]) for entry in logs] == [("tls.not_reloaded", "error")]
            pair.replace(authority.issue())
            await eventually(lambda: tls.context is not first)
        assert [entry["event"] for entry in logs] == ["tls.not_reloaded", "tls.reloaded"]


async def test_a_link_that_is_turned_elsewhere_is_a_change(authority: Authority, tmp_path: Path) -> None:
    """A secret that Kubernetes mounts is a link, and so is what Certbot keeps."""
    old, new = authority.issue(), authority.issue()
    linked = Pair(tmp_path / "certificate", tmp_path / "key")
    linked.certificate.symlink_to(old.certificate)
    linked.key.symlink_to(old.key)
    tls = Reloading(server_context, files(linked), look_seconds=LOOK_SECONDS)
    first = tls.context
    async with watching(tls):
        for link, target in ((linked.certificate, new.certificate), (linked.key, new.key)):
            (tmp_path / "new").symlink_to(target)
            (tmp_path / "new").replace(link)
        await eventually(lambda: tls.context is not first)
