"""What is kept of the statuses that clients ask for."""

from collections.abc import Sequence
from uuid import UUID, uuid4

from service_b.statuses import Statuses
from service_b.tasks.lookups import Status


async def test_final_statuses_alone_are_kept_and_only_so_many() -> None:
    missing, running, *finished = [uuid4() for _ in range(5)]
    table = {running: Status("ABC1234", None)}
    table |= {id_: Status("ABC1234", code) for id_, code in zip(finished, (200, 404, 500), strict=True)}
    asked: list[UUID] = []

    async def look_up(batch: Sequence[UUID]) -> list[Status | None]:
        asked.extend(batch)
        return [table.get(id_) for id_ in batch]

    kept = Statuses(look_up, max_kept=2)

    async def costs_a_lookup(id_: UUID) -> bool:
        asked.clear()
        assert await kept.get(str(id_)) == table.get(id_)
        return bool(asked)

    assert [await costs_a_lookup(id_) for id_ in (missing, running, *finished)] == [True] * 5
    assert [await costs_a_lookup(id_) for id_ in (missing, running)] == [True] * 2
    assert [await costs_a_lookup(id_) for id_ in finished[::-1]] == [False, False, True]
