"""Problem details on the real web application; what the routes answer with is tested with each of them."""

import pytest

from service_b.api import errors, problems
from service_b.api.errors import ApiError
from service_b.api.problems import KINDS, problem
from tests.clients import Client
from tests.service_b.api import test_routes

refusing, shared_database_url = test_routes.refusing, test_routes.shared_database_url


def subclasses(of: type[ApiError]) -> set[type[ApiError]]:
    return {of}.union(*(subclasses(each) for each in of.__subclasses__()))


def test_every_error_is_a_kind_of_its_own() -> None:
    kinds = subclasses(ApiError)
    assert len({kind.slug for kind in kinds}) == len(kinds)
    assert set(KINDS.values()) == kinds
    assert all(kind.__module__ == errors.__name__ for kind in kinds)


@pytest.mark.parametrize("slug", KINDS)
async def test_every_kind_is_explained(refusing: Client, slug: str) -> None:
    response = await refusing.get(f"/problems/{slug}")
    assert (response.status, response.content_type, response.charset) == (200, "text/plain", "utf-8")
    title, _, explanation = (await response.text()).partition("\n\n")
    assert title == KINDS[slug].title
    assert KINDS[slug].explanation in explanation


async def test_no_other_kind_is(refusing: Client) -> None:
    response = await refusing.get("/problems/nonsense")
    assert (response.status, response.content_type) == (404, problems.KIND)
    assert (await response.json(content_type=None))["type"] == "/problems/problem-not-found"


def test_a_problem_tells_its_faults() -> None:
    faults = [{"loc": ["notAfter"], "msg": "no"}]
    assert problem(errors.InvalidBodyError(faults)) == {
        "type": "/problems/invalid-request",
        "title": "The request is not valid",
        "status": 422,
        "detail": "The request is not valid",
        "errors": faults,
    }
