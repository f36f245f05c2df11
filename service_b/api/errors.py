"""Every error of ours that a client can get."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

RETRY_AFTER_SECONDS = 5
FULL_SECONDS = 60
"""About as long as service A takes for one task: then there is room for another."""


class ApiError(Exception):
    """An answer of ours that is not a success; nothing of the request goes into it.

    The legacy routes tell `code` and `message`. On the new ones it is a problem (RFC 9457): its type is named by
    `slug`, summed up by `title`, and `/problems/{slug}` tells its readers the `explanation`.
    """

    code = 500
    message = "Internal provisioning exception"
    headers: Mapping[str, str] = {}
    errors: Sequence[Mapping[str, Any]] = ()

    slug: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Something is wrong with this service"
    explanation: ClassVar[str] = (
        "The request met a fault of this service. Its operators find the cause in the log. Whether a task was stored "
        "is not known."
    )

    def body(self) -> dict[str, Any]:
        """Return the legacy answer's JSON object."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        return body | {"errors": self.errors} if self.errors else body


class EquipmentNotFoundError(ApiError):
    """The id is no serial, or the task is another device's."""

    code = 404
    message = "The requested equipment is not found"
    slug = "equipment-not-found"
    title = "There is no such device"
    explanation = "No device has this serial, or the token is not for it. A serial is 6 to 128 letters and digits."


class TaskNotFoundError(ApiError):
    """There is no such task."""

    code = 404
    message = "The requested task is not found"
    slug = "task-not-found"
    title = "There is no such task"
    explanation = "No task has this id, it has been forgotten since, or the token may not see it."


class NoTokenError(ApiError):
    """The request carries no token (RFC 6750, 3: then no error code is told)."""

    code = 401
    message = "A token is needed"
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}
    slug = "no-token"
    title = "A token is needed"
    explanation = "Send one as 'Authorization: Bearer cpe_...'. The operators of this service give them out."


class InvalidTokenError(ApiError):
    """What the request carries is no token, or an unknown, revoked or expired one."""

    code = 401
    message = "The token is not valid"
    headers: Mapping[str, str] = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    slug = "invalid-token"
    title = "The token is not valid"
    explanation = (
        "What was sent is no token, or one that is unknown, revoked or expired. A request carries exactly one."
    )


class InsufficientScopeError(ApiError):
    """The token has none of the roles that the route is for."""

    code = 403
    message = "The token does not allow this"
    headers: Mapping[str, str] = {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}
    slug = "insufficient-scope"
    title = "The token does not allow this"
    explanation = "The token has none of the roles that this route is for."


class OtherSiteError(ApiError):
    """A browser sends this for a page that is not ours."""

    code = 403
    message = "Requests from other sites are refused"
    slug = "other-site"
    title = "Requests from other sites are refused"
    explanation = (
        "A browser said that a page of another site sends this (Sec-Fetch-Site, Origin). Ask from a server instead."
    )


class BadRequestError(ApiError):
    """The body cannot be read."""

    code = 400
    slug = "bad-request"
    title = "The request cannot be read"
    explanation = "A part of the request is malformed; the detail says which. The same request will not do better."

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class TooLargeError(ApiError):
    """The body is larger than any that we take."""

    code = 413
    message = "Request Entity Too Large"
    slug = "body-too-large"
    title = "The body is too large"
    explanation = "A body has 65,536 bytes at most."


class CompressedBodyError(ApiError):
    """A compressed body could be a bomb."""

    code = 415
    message = "The body must not be compressed"
    headers: Mapping[str, str] = {"Accept-Encoding": "identity"}
    slug = "compressed-body"
    title = "The body must not be compressed"
    explanation = "Send it as it is, without Content-Encoding."


class InvalidBodyError(ApiError):
    """The body is JSON, but not what we take; `errors` says what and where."""

    code = 422
    message = "The request is not valid"
    slug = "invalid-request"
    title = "The request is not valid"
    explanation = (
        "The request can be read, but asks for something that cannot be. 'errors' lists what is wrong: 'loc' is the "
        "way to the place, 'msg' what should be there."
    )

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(self.message)
        self.errors = errors


class KeyReusedError(ApiError):
    """The client has sent another request under the same `Idempotency-Key` before."""

    code = 422
    message = "The Idempotency-Key was used for another request"
    slug = "key-reused"
    title = "The Idempotency-Key was used for another request"
    explanation = (
        "The same token has sent another request under this key before. A key belongs to one request, as long as its "
        "task is kept: send this one under a new key."
    )


class TooManyTasksError(ApiError):
    """The device, or the tokens of the client's name, have as many unfinished tasks as they may."""

    code = 429
    headers: Mapping[str, str] = {"Retry-After": str(FULL_SECONDS)}
    slug = "too-many-tasks"
    title = "Too many tasks are unfinished"
    explanation = (
        "The device, or the client, has as many unfinished tasks as it may have. Nothing was stored: send it again "
        "after 'Retry-After' seconds."
    )

    def __init__(self, whose: str) -> None:
        self.message = f"Too many tasks of this {whose} are unfinished"
        super().__init__(self.message)


class UnavailableError(ApiError):
    """The database did not answer in time; whether a task was stored is not known."""

    code = 503
    message = "The storage is unavailable, try again"
    headers: Mapping[str, str] = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    slug = "storage-unavailable"
    title = "The storage is unavailable"
    explanation = (
        "The database did not answer in time. Whether a task was stored is not known. Send it again after 'Retry-After'"
        " seconds."
    )


class SilentClientError(ApiError):
    """No line came for too long; what was answered is stored."""

    code = 408
    message = "No line came for too long"
    slug = "silent-client"
    title = "No line came for too long"
    explanation = (
        "The client sent nothing for a minute, before its last line. What was answered is stored. Send the lines that "
        "got no answer again."
    )


class StoppingError(ApiError):
    """The process is to end; what was answered is stored."""

    code = 503
    message = "This process stops, send the rest to another"
    headers: Mapping[str, str] = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    slug = "stopping"
    title = "This process stops"
    explanation = (
        "The process that took the lines is to end, as for an upgrade. What was answered is stored. Send the lines "
        "that got no answer again: another process takes them, or this one as soon as it is back."
    )


class TaskEndedError(ApiError):
    """A task that has ended cannot be taken back."""

    code = 409
    message = "The task has ended"
    slug = "task-ended"
    title = "The task has ended"
    explanation = "What has ended cannot be cancelled any more; its state says how it ended."


class NotRetryableError(ApiError):
    """Only what has ended without success is tried again."""

    code = 409
    message = "The task has not ended, or has succeeded"
    slug = "not-retryable"
    title = "The task cannot be tried again"
    explanation = "Only a task that has failed, was cancelled or has expired can be tried again."


class ParametersForgottenError(ApiError):
    """What the task was to set on its device is not kept (`KEEP_PARAMETERS`)."""

    code = 409
    message = "The parameters of this task were not kept: send them in the body"
    slug = "parameters-forgotten"
    title = "The parameters are needed"
    explanation = "The parameters of this task were not kept. Send them in the body of the retry, as 'parameters'."


class ProblemNotFoundError(ApiError):
    """There is no such kind of error."""

    code = 404
    message = "There is no such problem"
    slug = "problem-not-found"
    title = "There is no such problem"
    explanation = "No answer of this service has a type of this name."


class MethodNotAllowedError(ApiError):
    """The route is there, but not for this method."""

    code = 405
    message = "Method Not Allowed"
    slug = "method-not-allowed"
    title = "The route is not for this method"
    explanation = "The header 'Allow' names the methods that it is for."

    def __init__(self, allowed: str) -> None:
        super().__init__()
        self.headers = {"Allow": allowed}
