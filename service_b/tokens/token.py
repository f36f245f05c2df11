"""The secret itself: `cpe_`, 30 random characters, and a checksum by which scanners and we know a token from noise."""

import hashlib
import re
import secrets
import string
import zlib

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
PAIRS = [first + second for first in ALPHABET for second in ALPHABET]
"""The digits of a checksum, two at a time: it is made for each request."""
PREFIX = "cpe_"
RANDOM = 30
"""Characters: 178 bits, which nobody tries all of. So a quick hash is enough to keep."""
CHECK = 6

SHAPE = re.compile(f"{PREFIX}[0-9A-Za-z]{{{RANDOM + CHECK}}}", re.ASCII)


def make() -> str:
    """Make a token."""
    random = "".join(secrets.choice(ALPHABET) for _ in range(RANDOM))
    return f"{PREFIX}{random}{_check(random)}"


def digest(text: str) -> bytes | None:
    """Give the SHA-256 that a token is known by; None for what is none: it need not be looked for."""
    end = len(PREFIX) + RANDOM
    if not SHAPE.fullmatch(text) or _check(text[len(PREFIX) : end]) != text[end:]:
        return None
    return hashlib.sha256(text.encode()).digest()


def _check(random: str) -> str:
    """Write the CRC32 of the random characters with the same alphabet, the highest digit first."""
    number, low = divmod(zlib.crc32(random.encode()), len(PAIRS))
    high, middle = divmod(number, len(PAIRS))
    return PAIRS[high] + PAIRS[middle] + PAIRS[low]
