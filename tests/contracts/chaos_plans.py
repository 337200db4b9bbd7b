"""A chaos house's course drawn from a seed: the same seed, the same course."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from cotenant.errors import CotenantError
from cotenant.jobs.model import Wishes
from tests.contracts.chaos_house import ChaosHouse
from tests.contracts.chaos_jobs import ACCEPTED, KINDS
from tests.contracts.chaos_verdict import Tally

#: Kinds by how often they are drawn.
_KINDS = [kind for kind in KINDS for _ in range({"quick": 8, "steady": 8, "long": 3, "endless": 0}.get(kind, 1))]
_ACCEPTED = [kind for kind in _KINDS if kind in ACCEPTED and kind != "long"]
_WORKLOADS = ("writer", "mockups")
#: What of the queue can be down, by full name.
SOURCES = (
    "results", "dead", "jobs", "jobs.writer", "jobs.mockups",
    "jobs-cotenant", "jobs-cotenant.writer", "jobs-cotenant.mockups", "jobs-cotenant-clerk",
)  # fmt: skip

_Step = Callable[[ChaosHouse, random.Random], Awaitable[None]]


def complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # A call that is cancelled in the moment in which it fails loses its error: Python says so, and nobody misses it.
    if not isinstance(context.get("exception"), CotenantError):
        loop.complaints.append(repr(context))  # type: ignore[attr-defined]


async def play(seed: int, steps: int = 30) -> Tally:
    """A course of so many steps, healed and checked."""
    asyncio.get_running_loop().set_exception_handler(complain)
    rng = random.Random(seed)
    house = ChaosHouse(rng.randrange(1 << 30))
    chosen = rng.choices(list(_STEPS), weights=list(_STEPS.values()), k=steps)
    for step in chosen:
        await step(house, rng)
        await house.pass_time(rng.choice((0.0, 0.05, 0.5, 1.0, 3.0, 8.0)))
    return await house.heal()


async def _publish(house: ChaosHouse, rng: random.Random) -> None:
    for _ in range(rng.randrange(1, 8)):
        deadline = house.clock.unix_s() + rng.uniform(1, 60) if rng.random() < 0.1 else None
        await house.clients.publish(
            rng.choice(_KINDS),
            own_lane=rng.random() < 0.5,
            tenant=_tenant(rng),
            batch=rng.choice(("b1", "b2")),
            bare=rng.random() < 0.15,
            wishes=Wishes(priority=rng.choice((0, 0, 0, 5, -5)), deadline_at_s=deadline),
        )


async def _burst(house: ChaosHouse, rng: random.Random) -> None:
    await house.clients.publish(
        rng.choice(("quick", "steady", "steady")), rng.randrange(10, 40), own_lane=rng.random() < 0.5
    )


async def _in_order(house: ChaosHouse, rng: random.Random) -> None:
    kind, key = rng.choice(("quick", "steady", "shaky", "deadly", "refused")), rng.choice("abc")
    await house.clients.publish(kind, rng.randrange(1, 6), own_lane=rng.random() < 0.5, key=f"{key}-{kind}")


async def _single(house: ChaosHouse, rng: random.Random) -> None:
    await house.clients.submit_single(rng.choice(_KINDS), _tenant(rng), webhook=rng.random() < 0.5)


async def _batch(house: ChaosHouse, rng: random.Random) -> None:
    kinds = [rng.choice(_ACCEPTED) for _ in range(rng.choice((1, 3, 10, 10, 70)))]
    await house.clients.submit_batch(kinds, _tenant(rng), webhook=rng.random() < 0.5)


def _tenant(rng: random.Random) -> str:
    return rng.choice(("acme", "globex"))


async def _again(house: ChaosHouse, rng: random.Random) -> None:
    await house.clients.publish_again(
        [rng.randrange(1000) for _ in range(rng.randrange(1, 4))], at_once=rng.random() < 0.5
    )


async def _another(house: ChaosHouse, rng: random.Random) -> None:
    await house.clients.publish_another_body(rng.randrange(1000))


async def _cancel(house: ChaosHouse, rng: random.Random) -> None:
    if rng.random() < 0.5:
        await house.clients.publish("long", own_lane=rng.random() < 0.5)
        await house.pass_time(rng.uniform(0, 3))
        await house.clients.cancel_latest()
    else:
        await house.clients.cancel(rng.randrange(1000))


async def _errand(house: ChaosHouse, rng: random.Random) -> None:
    await house.clients.repeat_errand(rng.randrange(1000))


async def _kill(house: ChaosHouse, rng: random.Random) -> None:
    await house.kill_ingress(rng.randrange(8), back_after_s=rng.choice((0.0, 1.0, 5.0, 20.0)))


async def _redeploy(house: ChaosHouse, rng: random.Random) -> None:
    await house.redeploy_ingress(
        rng.randrange(8), first_the_new=rng.random() < 0.5, drain_s=rng.choice((0.0, 1.0, 10.0, 30.0))
    )


async def _replica(house: ChaosHouse, rng: random.Random) -> None:
    house.kill_replica(rng.choice(_WORKLOADS))


async def _workload(house: ChaosHouse, rng: random.Random) -> None:
    house.redeploy_workload(rng.choice(_WORKLOADS), rng.uniform(0.5, 20), hard=rng.random() < 0.5)


async def _controller(house: ChaosHouse, rng: random.Random) -> None:
    house.silence_controller(rng.uniform(1, 30), hangs=rng.random() < 0.5)


async def _store(house: ChaosHouse, rng: random.Random) -> None:
    house.break_store(rng.uniform(0.5, 40))


async def _source(house: ChaosHouse, rng: random.Random) -> None:
    house.break_source(rng.choice(SOURCES), rng.uniform(0.5, 40))


async def _storm(house: ChaosHouse, rng: random.Random) -> None:
    house.storm(
        rng.uniform(2, 20),
        source_lost=rng.choice((0, 0.2, 0.5)),
        store_lost=rng.choice((0, 0.2, 0.5)),
        slow=rng.choice((0, 0.1)),
    )


async def _remove(house: ChaosHouse, rng: random.Random) -> None:
    house.remove_workload(rng.choice(_WORKLOADS), rng.uniform(1, 10))


async def _endless(house: ChaosHouse, rng: random.Random) -> None:
    await house.clients.publish("endless", own_lane=rng.random() < 0.5)


_STEPS: dict[_Step, float] = {
    _publish: 12,
    _burst: 1,
    _in_order: 2,
    _single: 3,
    _again: 4,
    _another: 1,
    _cancel: 2,
    _batch: 1,
    _errand: 0.5,
    _kill: 3,
    _redeploy: 2,
    _replica: 2,
    _workload: 1,
    _controller: 1,
    _store: 2,
    _source: 3,
    _storm: 2,
    _remove: 0.4,
    _endless: 0.2,
}
