"""Acts on a task that is there: taking it back, and trying it again."""

from aiohttp import web

from service_b.acts import Answer
from service_b.api.bodies import ConfigureRequest
from service_b.api.envelopes import parse_retry
from service_b.api.errors import NotRetryableError, ParametersForgottenError, TaskEndedError
from service_b.api.guard import Route
from service_b.api.parts import ACTS, RESOURCES
from service_b.api.reading import read
from service_b.api.submitting import submit
from service_b.api.tasks import TASK, find, show, show_new
from service_b.api.trail import Caller
from service_b.submission import Wishes
from service_b.tokens.access import Role

ENDED_BADLY = ("failed", "cancelled", "expired")


async def cancel_task(request: web.Request, caller: Caller | None = None) -> web.StreamResponse:
    """Take a task back: it never begins (200), or its call goes on and is the last one (202)."""
    task = await find(request, caller, Caller.may_act_on)
    answer = await request.app[ACTS].cancel(task.id, caller.access.name if caller else None)
    if answer is Answer.ENDED:
        raise TaskEndedError
    return show(200 if answer is Answer.CANCELLED else 202, await request.app[RESOURCES].get(str(task.id)))


async def retry_task(request: web.Request, caller: Caller | None = None) -> web.StreamResponse:
    """Make a new task of one that has not succeeded, with its parameters or with those of the body."""
    task = await find(request, caller, Caller.may_act_on)
    timeout_seconds, parameters = parse_retry(await read(request))
    if task.state not in ENDED_BADLY:
        raise NotRetryableError
    wishes = Wishes(task.external_id, retry_of=task.id)
    if parameters is None:
        if not (again := await request.app[ACTS].find_again(task.id, task.external_id)):
            raise ParametersForgottenError
        parameters, wishes = again.parameters, again.wishes
    configure = ConfigureRequest(timeout_seconds or task.timeout_seconds, parameters)
    name, headers = await submit(request, caller, task.equipment_id, configure, wishes)
    return await show_new(request, name, headers)


ROLES = frozenset[Role]({"submit", "operate"})

ROUTES = (
    Route("POST", f"{TASK}/cancel", cancel_task, ROLES, problems=True),
    Route("POST", f"{TASK}/retry", retry_task, ROLES, problems=True),
)
