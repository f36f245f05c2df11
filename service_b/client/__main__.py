"""`python -m service_b.client`: submit, follow, look up, cancel and retry tasks."""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import aiohttp
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from service_b.client import sheets, submitting
from service_b.client.service import RefusedError, Service

T = TypeVar("T")

FAILED, NOT_DONE = 1, 2
"""Exit statuses: a task has not succeeded; or the service did not do what it was asked for."""
COLOURS = {"succeeded": "green", "failed": "red", "expired": "red", "cancelled": "yellow", "refused": "red"}
SHOWN, SHOWN_WHERE_THERE_IS_ONE = ("id", "equipmentId", "state", "code"), ("externalId", "reason")

WIDE = 200
"""Characters of a table that goes into a file or a pipe."""

out, err = Console(width=None if sys.stdout.isatty() else WIDE), Console(stderr=True)
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Url = Annotated[str, typer.Option("--url", envvar="CPE_URL", help="Where the service answers.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a task.")]
LOCAL = "http://localhost:7776"


@app.callback()
def main() -> None:
    """Work with the tasks of the service. The token is read from CPE_TOKEN, or the file that CPE_TOKEN_FILE names."""


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Tasks as .csv, or as lines of JSON.")],
    url: Url = LOCAL,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until all tasks have ended.")] = False,
    failures: Annotated[
        Path | None, typer.Option(help="Where to write what failed, as CSV.", show_default="FILE.failures.csv")
    ] = None,
) -> None:
    """Submit the tasks of a file. Broken off, it is simply run again: no task is made twice."""
    try:
        rows = sheets.read(file)
    except (OSError, ValueError) as error:
        raise _end(f"{file}: {error}") from None
    outcomes = _run(_submit(_service(url), rows, follow=follow))
    failed = [outcome for outcome in outcomes if outcome.is_failure]
    counts = Counter(outcome.state for outcome in outcomes)
    out.print(f"{len(rows)} tasks:", ", ".join(f"{count} {_coloured(state)}" for state, count in counts.items()))
    if failed:
        path = failures or file.with_name(f"{file.name}.failures.csv")
        submitting.write_failures(path, failed)
        out.print(f"{len(failed)} that failed are in {path}", soft_wrap=True)
        raise typer.Exit(FAILED)


async def _submit(service: Service, rows: list[sheets.Row], *, follow: bool) -> list[submitting.Outcome]:
    columns = TextColumn("{task.description:>9}"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn()
    async with service:
        with Progress(*columns, console=err) as progress:
            accepting = progress.add_task("accepted", total=len(rows))
            outcomes = await submitting.submit(service, rows, lambda: progress.advance(accepting))
            if follow:
                accepted = sum(outcome.state == "accepted" for outcome in outcomes)
                ending = progress.add_task("ended", total=accepted)
                outcomes = await submitting.follow(service, outcomes, lambda: progress.advance(ending))
    return outcomes


@app.command()
def status(id_: Id, url: Url = LOCAL) -> None:
    """Show all there is to tell of a task, as JSON."""
    out.print_json(json.dumps(_run(_ask(_service(url), "GET", f"api/v1/tasks/{id_}"))))


@app.command()
def wait(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The ids of tasks.")], url: Url = LOCAL
) -> None:
    """Wait until tasks have ended, and tell how."""

    async def wait_for_all(service: Service) -> list[dict[str, Any]]:
        async with service:
            return await asyncio.gather(*map(service.ended, ids))

    ended = _run(wait_for_all(_service(url)))
    out.print(_table(ended))
    if any(task["state"] != "succeeded" for task in ended):
        raise typer.Exit(FAILED)


@app.command("list")
def list_(
    url: Url = LOCAL,
    device: Annotated[str | None, typer.Option(help="Only of this device.")] = None,
    state: Annotated[str | None, typer.Option(help="Only in this state.")] = None,
    external_id: Annotated[str | None, typer.Option(help="Only with this name of yours.")] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="How many at most.")] = 50,
) -> None:
    """Show tasks, the newest first."""
    asked = {"equipmentId": device, "state": state, "externalId": external_id}
    filters = {name: value for name, value in asked.items() if value is not None}

    async def find(service: Service) -> list[dict[str, Any]]:
        async with service:
            return [task async for task in service.tasks(most, **filters)]

    out.print(_table(_run(find(_service(url)))))


@app.command()
def cancel(id_: Id, url: Url = LOCAL) -> None:
    """Cancel a task: before its call it never begins; a call that is under way is not repeated."""
    told = _run(_ask(_service(url), "POST", f"api/v1/tasks/{id_}/cancel"))
    out.print("is under way: it will not be tried again" if told["cancelRequested"] else _coloured(told["state"]))


@app.command()
def retry(id_: Id, url: Url = LOCAL) -> None:
    """Try a task that has not succeeded once more, as a new task, whose id is told."""
    out.print(_run(_ask(_service(url), "POST", f"api/v1/tasks/{id_}/retry"))["id"])


async def _ask(service: Service, method: str, path: str) -> Any:
    async with service:
        return await service.ask(method, path)


def _service(url: str) -> Service:
    token, file = os.environ.get("CPE_TOKEN"), os.environ.get("CPE_TOKEN_FILE")
    try:
        return Service(url, token or (Path(file).read_text(encoding="ascii").strip() if file else None))
    except (OSError, ValueError) as error:
        raise _end(f"CPE_TOKEN_FILE: {error}") from None


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except RefusedError as error:
        raise _end(str(error)) from None
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _end(f"no answer: {str(error) or type(error).__name__}") from None


def _end(text: str) -> typer.Exit:
    err.print(text, style="red", markup=False, highlight=False)
    return typer.Exit(NOT_DONE)


def _table(tasks: list[dict[str, Any]]) -> Table:
    """Show a row for each; a reason, only where something has failed."""
    shown = [task | ({"reason": None} if task["state"] == "succeeded" else {}) for task in tasks]
    names = [*SHOWN, *(name for name in SHOWN_WHERE_THERE_IS_ONE if any(task[name] for task in shown))]
    table = Table(*(Column(name, no_wrap=name in SHOWN) for name in names), box=box.SIMPLE, pad_edge=False)
    for task in shown:
        # What does not fit into a row, `status` tells.
        cells = [
            Text("" if task[name] is None else str(task[name]), no_wrap=True, overflow="ellipsis") for name in names
        ]
        cells[names.index("state")].stylize(COLOURS.get(task["state"], ""))
        table.add_row(*cells)
    return table


def _coloured(state: str) -> str:
    return f"[{COLOURS.get(state, 'default')}]{state}[/]"


if __name__ == "__main__":
    app()
