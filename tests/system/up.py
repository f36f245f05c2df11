"""`make up`, `make down`, `make logs`: the whole system, kept running in the background."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress

from tests.system.spawning import LOCAL, ROOT, last_lines, make_private
from tests.system.system import Plan, System, running, taken_ports

FOLDER = LOCAL / "up"
PID_FILE = FOLDER / "pid"
SUPERVISOR_LOG = FOLDER / "supervisor.log"
RESTART_SECONDS = 1.0

PORTS = {
    "service A": 7777,
    "service B": 7776,
    "service B results": 7775,
    "configurator": 7774,
}
AMQP_PORT, MANAGEMENT_PORT, DATABASE_PORT = 5672, 15672, 5432


def up() -> int:
    """Start the supervisor in the background, tell what it tells, and return once all is ready or nothing is left."""
    if supervisor_pid() is not None:
        print("already up (make logs follows it, make down stops it)")
        return 0
    plan = plan_from_environment()
    ports = dict(PORTS)
    if plan.amqp_port and plan.management_port:
        ports |= {"RabbitMQ": plan.amqp_port, "RabbitMQ management": plan.management_port}
    if plan.database_port:
        ports |= {"PostgreSQL": plan.database_port}
    if taken := taken_ports(ports):
        print(f"cannot start: {'; '.join(taken)}", file=sys.stderr)
        return 1
    make_private(FOLDER)
    print("starting", flush=True)
    with SUPERVISOR_LOG.open("wb") as log_file:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "tests.system", "supervise"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log_file,
            start_new_session=True,
        )
    assert supervisor.stdout
    ready = False
    for line in supervisor.stdout:
        print(line.decode(), end="", flush=True)
        ready = True
    if not ready:
        steps = re.compile(r"\d\d:\d\d:\d\d ")
        why = [line for line in last_lines(SUPERVISOR_LOG).splitlines() if not steps.match(line)]
        print("cannot start:", *why, sep="\n", file=sys.stderr)
    return 0 if ready else 1


def supervise() -> int:
    """Run the system until SIGTERM, and start again what ends by itself; standard output says when all is ready."""
    with PID_FILE.open("a+") as pid_file, ExitStack() as stack:
        try:
            fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        pid_file.truncate(0)
        pid_file.write(str(os.getpid()))
        pid_file.flush()
        stack.callback(pid_file.truncate, 0)
        with running(FOLDER, plan_from_environment(), log) as system:
            print(urls(system), flush=True)
            # Whoever started us reads to the end of our output.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            while True:
                for process in system.processes:
                    if not process.is_running:
                        log(f"{process.name} ended with {process.wait()}, starting it again")
                        process.start(wait=False)
                time.sleep(RESTART_SECONDS)


def down() -> int:
    """Stop all that `up` started; what was accepted stays in `.local/up`."""
    while (pid := supervisor_pid()) == 0:
        time.sleep(0.1)
    if pid is None:
        print("not up")
        return 0
    print("stopping (calls that are under way are finished first)")
    os.kill(pid, signal.SIGTERM)
    while supervisor_pid() in (pid, 0):
        time.sleep(0.1)
    return 0


def follow_logs() -> int:
    """Follow the logs of the four processes and the supervisor."""
    files = sorted([*(FOLDER / "logs").glob("*.log"), *FOLDER.glob(SUPERVISOR_LOG.name)])
    if not files:
        print("no logs yet (make up)")
        return 1
    with suppress(KeyboardInterrupt):
        subprocess.run(["tail", "-n", "20", "-F", *map(str, files)], check=False)
    return 0


def plan_from_environment() -> Plan:
    """The contract's own ports, and the environment's servers instead of private ones where it names them."""
    amqp_url, database_url = os.environ.get("AMQP_URL") or None, os.environ.get("DATABASE_URL") or None
    return Plan(
        amqp_url=amqp_url,
        amqp_port=None if amqp_url else AMQP_PORT,
        management_port=None if amqp_url else MANAGEMENT_PORT,
        database_url=database_url,
        database_port=None if database_url else DATABASE_PORT,
        tls=os.environ.get("TLS", "") not in ("", "0"),
        service_a={"APP_PORT": str(PORTS["service A"])},
        service_b={"APP_PORT": str(PORTS["service B"]), "TOKENS_FILE": os.environ.get("TOKENS_FILE", "")},
        results={"HEALTH_PORT": str(PORTS["service B results"])},
        configurator={"HEALTH_PORT": str(PORTS["configurator"])},
    )


def urls(system: System) -> str:
    """What to open, one line each; the environment's servers are somebody's own, passwords and all."""
    lines = {
        "service B": f"{system.service_b.url}/api/v1/  {system.service_b.url}/docs",
        "service A": f"{system.service_a.url}/health/live",
        "metrics": "  ".join(
            f"{process.url}/metrics" for process in (system.service_b, system.results, system.configurator)
        ),
        "RabbitMQ": "from AMQP_URL"
        if os.environ.get("AMQP_URL")
        else f"{system.amqp_url}  http://127.0.0.1:{MANAGEMENT_PORT}/ (guest, guest)",
        "PostgreSQL": "from DATABASE_URL" if os.environ.get("DATABASE_URL") else system.database_url,
    }
    if system.ca:
        lines["the CA"] = f"{system.ca}  (curl --cacert …)"
    return "\n".join(f"{what:11} {where}" for what, where in lines.items())


def supervisor_pid() -> int | None:
    """The supervisor's process id while it lives, 0 while it comes or goes: it locks its file, as no dead one can."""
    if not PID_FILE.exists():
        return None
    with PID_FILE.open("r+") as pid_file:
        try:
            fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(pid_file.read() or 0)
        return None


def log(step: str) -> None:
    """Tell the supervisor's log, with the time."""
    print(time.strftime("%H:%M:%S"), step, file=sys.stderr, flush=True)
