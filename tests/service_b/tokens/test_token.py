"""The secret: its form, its checksum, and what it is known by."""

import hashlib
import re
import zlib

import pytest

from service_b.tokens import token


def test_a_token_has_the_contracts_form() -> None:
    made = [token.make() for _ in range(200)]
    assert len(set(made)) == 200
    for text in made:
        assert re.fullmatch("cpe_[0-9A-Za-z]{36}", text)
        assert token.digest(text) == hashlib.sha256(text.encode()).digest()


def test_the_checksum_is_the_crc32_in_base_62() -> None:
    """Worked out by hand, so that other programs find the same."""
    random = "0" * 30
    number, digits = zlib.crc32(random.encode()), []
    while number:
        digits.append("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[number % 62])
        number //= 62
    assert token.digest(f"cpe_{random}{''.join(reversed(digits)).rjust(6, '0')}")


@pytest.mark.parametrize("change", ["cut", "longer", "another prefix", "a digit changed", "the checksum changed", "é"])
def test_what_is_no_token_is_not_looked_for(change: str) -> None:
    text = token.make()
    other = "A" if text[10] != "A" else "B"
    last = "A" if text[-1] != "A" else "B"
    changed = {
        "cut": text[:-1],
        "longer": f"{text}\n",
        "another prefix": f"CPE_{text[4:]}",
        "a digit changed": text[:10] + other + text[11:],
        "the checksum changed": text[:-1] + last,
        "é": f"{text[:10]}é{text[11:]}",
    }[change]
    assert token.digest(changed) is None
