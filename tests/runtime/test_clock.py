"""The clock for waiting."""

import subprocess
import sys

import pytest

from tests.system.spawning import ROOT

SLEPT_SECONDS = 86_400


def test_the_time_in_which_the_machine_slept_counts() -> None:
    """In a time namespace the kernel says that this machine has slept for a day."""
    namespace = ["unshare", "--user", "--map-root-user", "--time", "--boottime", str(SLEPT_SECONDS), "--fork"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no time namespace may be made here")
    program = "import time; from runtime import clock; print(clock.now() - time.monotonic())"
    slept = subprocess.run(
        [*namespace, sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(slept.stdout) > SLEPT_SECONDS - 60
