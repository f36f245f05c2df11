"""Every error of ours that a client can get."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

RETRY_AFTER_SECONDS = 5
FULL_SECONDS = 60
"""About as long as service A takes for one task: then there is room for another."""


class ApiError(Exception):
    """An answer of ours that is not a success; nothing of the request goes into it."""

    code = 500
    message = "Internal provisioning exception"
    headers: ClassVar[Mapping[str, str]] = {}
    errors: Sequence[Mapping[str, Any]] = ()

    def body(self) -> dict[str, Any]:
        """Return the answer's JSON object."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        return body | {"errors": self.errors} if self.errors else body


class EquipmentNotFoundError(ApiError):
    """The id is no serial, or the task is another device's."""

    code = 404
    message = "The requested equipment is not found"


class TaskNotFoundError(ApiError):
    """There is no such task."""

    code = 404
    message = "The requested task is not found"


class NoTokenError(ApiError):
    """The request carries no token (RFC 6750, 3: then no error code is told)."""

    code = 401
    message = "A token is needed"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class InvalidTokenError(ApiError):
    """What the request carries is no token, or an unknown, revoked or expired one."""

    code = 401
    message = "The token is not valid"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer error="invalid_token"'}


class InsufficientScopeError(ApiError):
    """The token has none of the roles that the route is for."""

    code = 403
    message = "The token does not allow this"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}


class OtherSiteError(ApiError):
    """A browser sends this for a page that is not ours."""

    code = 403
    message = "Requests from other sites are refused"


class BadRequestError(ApiError):
    """The body cannot be read."""

    code = 400

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class CompressedBodyError(ApiError):
    """A compressed body could be a bomb."""

    code = 415
    message = "The body must not be compressed"
    headers: ClassVar[Mapping[str, str]] = {"Accept-Encoding": "identity"}


class InvalidBodyError(ApiError):
    """The body is JSON, but not what we take; `errors` says what and where."""

    code = 422
    message = "The request is not valid"

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(self.message)
        self.errors = errors


class KeyReusedError(ApiError):
    """The client has sent another request under the same `Idempotency-Key` before."""

    code = 422
    message = "The Idempotency-Key was used for another request"


class TooManyTasksError(ApiError):
    """The device, or the tokens of the client's name, have as many unfinished tasks as they may."""

    code = 429
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": str(FULL_SECONDS)}

    def __init__(self, whose: str) -> None:
        self.message = f"Too many tasks of this {whose} are unfinished"
        super().__init__(self.message)


class UnavailableError(ApiError):
    """The database did not answer in time; whether a task was stored is not known."""

    code = 503
    message = "The storage is unavailable, try again"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": str(RETRY_AFTER_SECONDS)}
