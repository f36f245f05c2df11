"""POSTs while 32 watchers ask for metrics and readiness without a pause."""

from tests.bench.load import Generator, Load, generate
from tests.bench.report import Report
from tests.bench.stage import Stage

SCRAPERS = 32
CONNECTIONS = 4
"""Few, so that a POST's time is its own and not that of the queue in front of it."""


def measure(stage: Stage, report: Report) -> None:
    """Measure without and with them, in turns."""
    seconds = stage.sizes.seconds
    with stage.room("scrapers") as room:
        web = room.start("service_b")
        generate(Load(web.port, CONNECTIONS, seconds=stage.sizes.warmup, prefix="WARM"))
        for turn in range(stage.sizes.rounds):
            alone = generate(Load(web.port, CONNECTIONS, seconds=seconds, prefix=f"ALONE{turn}X"))
            watching = Load(web.port, SCRAPERS, seconds=seconds + 2, paths=["/metrics", "/health/ready"])
            with Generator(watching) as scrapers:
                beside = generate(Load(web.port, CONNECTIONS, warmup=1, seconds=seconds, prefix=f"BESIDE{turn}X"))
                report.add("scrapers.answers to them", scrapers.result().rate, "answers/s")
            report.add("scrapers.POST p50, none", alone.p50_ms, "ms")
            report.add("scrapers.POST p50", beside.p50_ms, "ms")
