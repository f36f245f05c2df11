"""The description of the API: is it sound, does it name what is served, and do its pages need nobody else?"""

import hashlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import openapi_spec_validator
import pytest
import ruamel.yaml
from aiohttp import web

from runtime.health import add_health_routes
from service_b.api import docs, problems, routes
from tests.clients import Client, serving

DESCRIPTION: dict[str, Any] = json.loads(docs.description())
METHODS = {"get", "post", "put", "patch", "delete", "head"}

OPERATIONS = {
    (method.upper(), path): operation
    for path, item in DESCRIPTION["paths"].items()
    for method, operation in item.items()
    if method in METHODS
}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """All that the web process serves, with nothing behind it."""
    app = web.Application()
    routes.add_routes(app, None)
    docs.add_routes(app.router)
    add_health_routes(app)
    async with serving(app) as made:
        yield made


def test_the_description_is_sound() -> None:
    openapi_spec_validator.validate(DESCRIPTION)


def test_it_reads_the_same_by_yaml_1_2() -> None:
    """The service's reader is one of 1.1, for which `no` and `12:30` are other things."""
    assert ruamel.yaml.YAML(typ="safe", pure=True).load(docs.DESCRIPTION) == DESCRIPTION


def served(client: Client) -> set[tuple[str, str]]:
    """All routes, by method and path as the description writes it; those of the page's files are described as one."""
    return {
        (route.method, re.sub("^/docs/.*", "/docs/{file}", route.resource.canonical))
        for route in client.app.router.routes()
        if route.resource and route.method != "HEAD"
    }


async def test_what_is_served_is_described_and_nothing_else(client: Client) -> None:
    assert served(client) == set(OPERATIONS)


def test_the_roles_are_described() -> None:
    """Each line of an operation's security is one way in."""
    for route in routes.ROUTES:
        described = OPERATIONS[route.method, re.sub(r":[^}]*\}", "}", route.path)].get(
            "security", DESCRIPTION["security"]
        )
        assert {role for way in described for role in way["token"]} == (route.roles or frozenset()), route.path
        assert bool(described) == (route.roles is not None), route.path


def test_the_problems_are_described() -> None:
    slug = OPERATIONS["GET", "/problems/{slug}"]["parameters"][0]["schema"]
    assert slug["enum"] == sorted(problems.KINDS)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=[" ".join(names) for names in OPERATIONS])
def test_every_operation_has_a_name_and_a_tag(operation: dict[str, Any]) -> None:
    assert operation["operationId"]
    assert operation["summary"]
    assert set(operation["tags"]) <= {tag["name"] for tag in DESCRIPTION["tags"]}


async def test_it_is_served_as_json(client: Client) -> None:
    response = await client.get("/openapi.json")
    assert (response.status, response.content_type) == (200, "application/json")
    assert await response.json() == DESCRIPTION
    assert (await client.head("/openapi.json")).headers["Content-Length"] == response.headers["Content-Length"]


@pytest.mark.parametrize("path", docs.FILES)
async def test_the_page_and_its_files(client: Client, path: str) -> None:
    response = await client.get(path)
    name, kind = docs.FILES[path]
    assert (response.status, response.headers["Content-Type"]) == (200, kind)
    assert await response.read() == (docs.PAGES / name).read_bytes()
    policy = response.headers["Content-Security-Policy"]
    assert ("default-src 'self';" in policy, "script-src" in policy, "unsafe" in policy) == (True, False, False)
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert (await client.head(path)).status == 200


async def test_nothing_else_is_served_there(client: Client) -> None:
    for path in ("/docs/", "/docs/docs.html", "/docs/..%2fopenapi.yaml", "/docs/swagger-ui/LICENSE"):
        assert (await client.get(path)).status == 404, path


def test_the_page_asks_nobody_else_and_has_no_script_of_its_own() -> None:
    html = (docs.PAGES / "docs.html").read_text()
    asked = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert {f"/{path}" for path in asked} == {"/openapi.json", *docs.FILES} - {"/docs"}
    assert not re.search(r"<script>|<style|\son\w+=", html)
    assert "//" not in re.sub("//.*", "", (docs.PAGES / "start.js").read_text())


def test_the_files_of_swagger_ui_are_those_of_its_release() -> None:
    folder = docs.PAGES / "swagger-ui"
    lines = [line.split() for line in (folder / "SHA256SUMS").read_text().splitlines()]
    sums = {name: wanted for wanted, name in lines}
    assert {path.name for path in folder.iterdir()} == {*sums, "SHA256SUMS", "README.md"}
    for name, wanted in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == wanted, name
