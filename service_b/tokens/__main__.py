"""`python -m service_b.tokens NAME ROLES [--devices …] [--expires …]`: makes a token (`make token`)."""

import argparse
import sys

from service_b.tokens import token
from service_b.tokens.file import TokensFileError, write_line


def main() -> None:
    """Print a new token, which nobody can print again, and the line by which it is known."""
    parser = argparse.ArgumentParser(prog="make token", description="Makes a token for service B's API.")
    parser.add_argument("name", help="whose it is: letters, digits, dots, dashes and underscores")
    parser.add_argument("roles", help="submit, read, operate, admin; several with commas")
    parser.add_argument("--devices", default="*", help="patterns such as ABC*, several with commas")
    parser.add_argument("--expires", default="", help="an RFC 3339 time such as 2027-01-31T00:00:00Z")
    given = parser.parse_args()
    made = token.make()
    try:
        line = write_line(made, given.name, _list(given.roles), _list(given.devices or "*"), given.expires or None)
    except TokensFileError as error:
        raise SystemExit(f"make token: {str(error).partition(': ')[2]}") from None
    sys.stdout.write(f"The token, shown this once:\n\n{made}\n\nThe line to append to TOKENS_FILE:\n\n{line}\n")


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


if __name__ == "__main__":
    main()
