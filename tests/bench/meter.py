"""What processes cost: CPU time and memory, as the kernel counts them."""

import os
from collections.abc import Mapping
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """Tell the CPU time of a process and of all its descendants, those that have ended included (10 ms resolution).

    A server works in children (PostgreSQL) or in threads (RabbitMQ); a child that has ended is counted by its parent.
    """
    ticks = 0
    pids = [pid]
    while pids:
        folder = Path(f"/proc/{pids.pop()}")
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            for thread in (folder / "task").iterdir():
                pids += map(int, (thread / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime: proc_pid_stat(5)
    return ticks / TICKS_PER_SECOND


def resident_bytes(pid: int) -> int:
    """Tell the resident memory of one process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


class Meter:
    """The CPU time that each of several processes has used since the meter was made."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._before = {name: cpu_seconds(pid) for name, pid in self._pids.items()}

    def seconds(self) -> dict[str, float]:
        """Read the meter."""
        return {name: cpu_seconds(pid) - self._before[name] for name, pid in self._pids.items()}
