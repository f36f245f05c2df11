"""What we want of a database session, and whether we got it."""

from collections.abc import Mapping
from typing import Any

import asyncpg

CHECK_TIMEOUT_SECONDS = 3.0

SESSION = {
    "application_name": "service_b",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "default_transaction_isolation": "read committed",
    "synchronous_commit": "on",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    # A process that stands still, or a host that is gone, must not keep its locks from the others.
    "idle_in_transaction_session_timeout": "10s",
    "jit": "off",
    # The values of a statement that fails: a task's parameters, with a password among them.
    "log_parameter_max_length_on_error": "0",
    # The statistics are always of another moment than the one to plan for: of an empty table, or of one that was all
    # finished. So nothing is left to them. A statement is planned once; rows are found by an index; where one must be
    # looked up for each row of a batch the statement says LATERAL, for which there is only the nested loop; all else
    # is joined by hash: never each of a batch with each, and never by reading a whole index in its order.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_nestloop": "off",
    "enable_mergejoin": "off",
    "enable_hashjoin": "on",
    "enable_indexscan": "on",
    "enable_indexonlyscan": "on",
}
"""What our statements stand on, as PostgreSQL shows it, whatever the defaults of the role and of the database are.

`default_transaction_read_only` is not among them: who has set that wants no writes, and the next host is tried.
"""
DEFAULT_SEARCH_PATH = '"$user", public'
"""PostgreSQL's own. A deployment in another schema says so in `DATABASE_URL`, to us and to dbmate alike."""
KEEPALIVE = {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}
"""The server notices a client that is gone. Over a Unix socket it shows 0 for each."""

POOLER = "something in front of PostgreSQL ({}): a pooler must be in session mode, and pass settings on"


class UnfitDatabaseError(Exception):
    """We are connected, but to something that would break our promises; the text is one line for an operator."""


async def check_session(connection: Any, expected: Mapping[str, str]) -> None:
    """Refuse what takes our connection and then does not keep to it. Raises `UnfitDatabaseError`."""
    encoding = connection.get_settings().server_encoding
    if encoding != "UTF8":
        raise UnfitDatabaseError(f"its encoding is {encoding}, and must be UTF8")
    # A pooler may add to our name; that harms nothing.
    expected = {name: value for name, value in expected.items() if name != "application_name"}
    try:
        # Prepared and executed: two transactions for a pooler, which may send them to two servers.
        rows = await connection.fetch(
            "SELECT name, current_setting(name) AS value FROM unnest($1::text[]) AS name",
            list(expected),
            timeout=CHECK_TIMEOUT_SECONDS,
        )
    except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError):
        raise UnfitDatabaseError(POOLER.format("it does not keep prepared statements")) from None
    if dropped := [row["name"] for row in rows if row["value"] != expected[row["name"]]]:
        raise UnfitDatabaseError(POOLER.format(f"it drops our session's {', '.join(dropped)}"))
    if connection.get_server_version() >= (17,):  # Older servers do not know it, and would refuse to connect.
        await connection.execute("SET transaction_timeout = 0", timeout=CHECK_TIMEOUT_SECONDS)
