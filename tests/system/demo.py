"""`make demo`: the whole system on this machine for half a minute, from an empty folder to final statuses."""

import asyncio
import shutil
import time
import zlib
from dataclasses import dataclass, field

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.system.spawning import LOCAL
from tests.system.system import Plan, running

DELAY_SECONDS = 3
ERROR_RATE = 0.06
GIVE_UP_SECONDS = 120
UNKNOWN = ("UNKNOWN0001", "UNKNOWN0002")
KNOWN = tuple(f"ROUTER{number:04}" for number in range(1, 25))
# One device twice: its second task waits for the first.
SAMPLE = (*KNOWN, *UNKNOWN, KNOWN[0])
BODY = {
    "timeoutInSeconds": 14,
    "parameters": {"username": "admin", "password": "admin", "vlan": 534, "interfaces": [1, 2, 3, 4]},
}


@dataclass
class Device:
    """One task of the sample, as its client sees it."""

    serial: str
    task: str = ""
    code: int | None = None
    message: str = ""
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    @property
    def expected(self) -> int:
        """What service A decides for this serial; its env.example says how."""
        if self.serial in UNKNOWN:
            return 404
        return 500 if zlib.crc32(self.serial.encode()) / 2**32 < ERROR_RATE else 200


def demo() -> int:
    """Run the demonstration; 0 if every task ended as it should."""
    console = Console()
    folder = LOCAL / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    plan = Plan(
        service_a={
            "RESPONSE_DELAY_SECONDS": str(DELAY_SECONDS),
            "KNOWN_EQUIPMENT": ",".join(KNOWN),
            "ERROR_RATE": str(ERROR_RATE),
        }
    )
    began = time.monotonic()

    def tell(step: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:5.1f} s[/dim]  {step}", soft_wrap=True)

    with running(folder, plan, tell) as system:
        tell(f"service B answers at {system.service_b.url}, service A takes {DELAY_SECONDS} s a device")
        devices = asyncio.run(configure(system.service_b.url, console))
    console.print(report(devices))
    wrong = [device for device in devices if device.code != device.expected]
    for device in wrong:
        console.print(f"[red]{device.serial}: expected {device.expected}, got {device.code or 'no final status'}[/red]")
    if wrong:
        console.print(f"The logs are in {folder / 'logs'}")
    return 1 if wrong else 0


async def configure(url: str, console: Console) -> list[Device]:
    """Submit the sample over the HTTP API and ask for each task until it has ended."""
    path = f"{url}/api/v1/equipment/cpe"
    devices = [Device(serial) for serial in SAMPLE]
    columns = (TextColumn("configuring"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn())
    async with aiohttp.ClientSession() as client:
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("configuring", total=len(devices))

            async def submit(device: Device) -> None:
                device.began = time.monotonic()
                async with client.post(f"{path}/{device.serial}", json=BODY) as response:
                    device.task = (await response.json())["taskId"]

            async def follow(device: Device) -> None:
                while True:
                    async with client.get(f"{path}/{device.serial}/task/{device.task}") as response:
                        answer = await response.json()
                    if answer["code"] != 204:
                        break
                    await asyncio.sleep(0.2)
                device.code, device.message = answer["code"], answer["message"]
                device.seconds = time.monotonic() - device.began
                progress.advance(bar)

            # One after the other, because the order of acceptance is what a device's tasks are served in.
            for device in devices:
                await submit(device)
            try:
                async with asyncio.timeout(GIVE_UP_SECONDS):
                    await asyncio.gather(*map(follow, devices))
            except TimeoutError:
                console.print(f"[red]some tasks did not end within {GIVE_UP_SECONDS} s[/red]")
    return devices


def report(devices: list[Device]) -> Table:
    """A row for each task, and what all of them took."""
    table = Table("device", "code", "message", "seconds")
    colours = {200: "green", 404: "yellow"}
    for device in devices:
        code = f"[{colours.get(device.code or 0, 'red')}]{device.code or '-'}[/]"
        table.add_row(device.serial, code, device.message, f"{device.seconds:.1f}")
    finished = [device for device in devices if device.code]
    slowest = max((device.seconds for device in finished), default=0.0)
    table.caption = f"{len(finished)} of {len(devices)} tasks ended; the slowest took {slowest:.1f} s"
    return table
