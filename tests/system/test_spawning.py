"""What the private servers are started with."""

import subprocess
import sys
from contextlib import ExitStack

from tests.system.spawning import ROOT

GIVE = """
import random, sys
random.seed(0)  # All would take the same blocks of ports in the same order.
from tests.system.spawning import free_port
print(*(free_port() for _ in range(120)), flush=True)
sys.stdin.read()
"""


def test_no_two_processes_are_given_the_same_port() -> None:
    ports: list[str] = []
    with ExitStack() as stack:
        for _ in range(3):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", GIVE], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            stack.callback(process.kill)
            assert process.stdout
            ports += process.stdout.readline().split()
    assert len(ports) == 360
    assert len(set(ports)) == 360
