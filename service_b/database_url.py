"""What a `DATABASE_URL` may say. PostgreSQL's own library (libpq) knows more options than our driver does.

The driver sends PostgreSQL every option that it does not know, as a setting of the session, and PostgreSQL ends each
connection that comes with an unknown one. So what only libpq knows is left out, or refused before the first connection.
Sources: https://www.postgresql.org/docs/current/libpq-connect.html, and asyncpg's `connect_utils.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from runtime.tls import Files, client_context

SHAPE = "must be postgresql://user:password@host:port,host:port/database, the password percent-encoded"

SSL_MODES = ("disable", "allow", "prefer", "verify-full")
"""The first three promise nothing. `require` and `verify-ca` seem to, but let another server answer."""

LEFT_OUT = {
    "connect_timeout",  # We have our own, and notice a silent peer by the server's keepalives.
    "fallback_application_name",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",  # Of several hosts one takes writes.
    "max_protocol_version",
    "sslcompression",  # Of no effect in libpq, either.
}
"""Options that promise nothing that we would break."""

LEFT_OUT_IF = {
    "channel_binding": ("disable", "prefer"),
    "gssdelegation": ("0",),
    "gssencmode": ("disable", "prefer"),
    "min_protocol_version": ("3.0",),
    "replication": ("false", "off", "no", "0"),
    "requiressl": ("0",),
    "sslcertmode": ("allow",),
    "sslsni": ("1",),
}
"""Options that are left out with these values. With another one they ask for what the driver cannot do."""

REFUSED = {
    "hostaddr",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_issuer",
    "oauth_scope",
    "require_auth",
    "requirepeer",
    "scram_client_key",
    "scram_server_key",
    "servicefile",
    "sslcrldir",
    "sslkeylogfile",
}
"""Options that ask for what the driver cannot do, whatever their value: to leave one out would weaken a rule."""

TLS_FILES = ("sslcert", "sslkey", "sslrootcert")
FILES = (*TLS_FILES, "sslcrl")


def driver_url(text: str) -> str:
    """Give the URL as the driver understands it.

    Raises ValueError, with a message that quotes no value: it may be, or show, the password.
    """
    try:
        url = urlsplit(text)
        login, _, hosts = url.netloc.rpartition("@")
        if url.scheme not in ("postgresql", "postgres") or "@" in login:
            raise ValueError
        options = parse_qsl(url.query, strict_parsing=bool(url.query))
        also = dict(options)
        for host in f"{hosts},{also.get('host', '')}".split(","):
            _ = urlsplit(f"//{host}").port
        for port in also.get("port", "0").split(","):
            int(port)
    except ValueError:
        raise ValueError(SHAPE) from None
    kept = [(name, value) for name, value in options if not _is_left_out(name, value)]
    _check_tls(dict(kept))
    return urlunsplit(url._replace(query=urlencode(kept)))


def names_search_path(text: str) -> bool:
    """Tell whether the URL says in which schema the tables are."""
    options = dict(parse_qsl(urlsplit(text).query))
    return "search_path" in options or "search_path" in options.get("options", "")


def _check_tls(options: Mapping[str, str]) -> None:
    """Take no URL by which less would be verified than it seems: without a mode, nothing is."""
    if given := [name for name in FILES if name in options]:
        if options.get("sslmode") != "verify-full":
            raise ValueError(f"must be with an option sslmode of verify-full, since it has an option {given[0]}")
        certificate, key, ca = (Path(options[name]) if name in options else None for name in TLS_FILES)
        if not certificate or not key or "sslpassword" in options:
            certificate = key = None  # The driver reads what is in their place; that shows when it connects.
        client_context(Files(certificate, key, ca, ("its sslcert", "its sslkey", "its sslrootcert")))


def _is_left_out(name: str, value: str) -> bool:
    if name in REFUSED:
        raise ValueError(f"must be without its option {name}, which this driver (asyncpg) cannot honour")
    if name in LEFT_OUT_IF and value not in LEFT_OUT_IF[name]:
        right = " or ".join(LEFT_OUT_IF[name])
        raise ValueError(f"must be without its option {name}, or with {right}: this driver (asyncpg) knows no more")
    if name == "sslmode" and value not in SSL_MODES:
        raise ValueError("must be with an option sslmode of verify-full (TLS), or disable, allow, prefer (no promise)")
    if name in FILES and not Path(value).is_file():
        raise ValueError(f"must be with a file that can be read as its option {name}")
    return name in LEFT_OUT or name in LEFT_OUT_IF
