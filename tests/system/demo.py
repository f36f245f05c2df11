"""`make demo`: the whole system on this machine for half a minute, from an empty folder to final statuses."""

import csv
import json
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
import zlib
from collections import Counter
from pathlib import Path

from rich.console import Console

from tests.system.spawning import LOCAL, ROOT
from tests.system.system import Plan, running

DELAY_SECONDS = 3
ERROR_RATE = 0.06
GIVE_UP_SECONDS = 120
UNKNOWN = ("UNKNOWN0001", "UNKNOWN0002")
KNOWN = tuple(f"ROUTER{number:04}" for number in range(1, 25))
# One device twice: its second task waits for the first.
SAMPLE = (*KNOWN, *UNKNOWN, KNOWN[0])
COLUMNS = ("equipmentId", "timeoutInSeconds", "username", "password", "vlan", "interfaces")
VALUES = (14, "admin", "admin", 534, "1 2 3 4")


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
        url = system.service_b.url
        tell(f"service B answers at {url}, service A takes {DELAY_SECONDS} s a device")
        sheet = write_sheet(folder / "devices.csv")

        def run(*arguments: str) -> None:
            command = ("-m", "service_b.client", *arguments, "--url", url)
            console.print(f"\n[bold]$ .venv/bin/python {shlex.join(command)}[/bold]", soft_wrap=True, highlight=False)
            subprocess.run([sys.executable, *command], cwd=ROOT, timeout=GIVE_UP_SECONDS, check=False)

        try:
            run("submit", str(sheet.relative_to(ROOT)), "--follow")
            run("list")
        except subprocess.TimeoutExpired:
            console.print(f"[red]some tasks did not end within {GIVE_UP_SECONDS} s[/red]")
        codes = final_codes(url)
    wrong = {key: codes[key] - expected_codes()[key] for key in codes.keys() | expected_codes().keys()}
    unexpected = sorted(f"{device}: {code}" for (device, code), many in wrong.items() if many)
    if unexpected:
        console.print(f"[red]Not as it should be: {', '.join(unexpected)}[/red]. The logs are in {folder / 'logs'}")
    return 1 if unexpected else 0


def write_sheet(path: Path) -> Path:
    """Write the sample as a file that the command line takes."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows((serial, *VALUES) for serial in SAMPLE)
    return path


def expected_codes() -> Counter[tuple[str, int | None]]:
    """Tell what service A decides for each serial; its env.example says how."""
    return Counter((serial, _decided(serial)) for serial in SAMPLE)


def _decided(serial: str) -> int:
    if serial in UNKNOWN:
        return 404
    return 500 if zlib.crc32(serial.encode()) / 2**32 < ERROR_RATE else 200


def final_codes(url: str) -> Counter[tuple[str, int | None]]:
    """Ask the service how its tasks have ended."""
    # No proxy of the developer's may stand between us and our own machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/api/v1/tasks?limit=500") as answer:
        return Counter((task["equipmentId"], task["code"]) for task in json.load(answer)["items"])
