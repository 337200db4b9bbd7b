"""Decisions a second of the GPU ledger, on one core (measured).

    python benchmarks/ledger.py [--seconds 2]

A decision is one message of a tenant answered by the ledger: `ask`, `busy`, `idle`, `slept`, `withdraw` or a `tick`.
The tenants of one GPU obey: they wait for their grant, work, and sleep when recalled; half of the work is batch.
`calm`: work is rare, memory mostly has room. `crowded`: every tenant always wants to work, so most of them wait in
the queue. Only the time inside the ledger counts. Limit: 100,000 decisions/s in each row.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable

from cotenant.gpu.ledger import Action, Grant, Ledger, State, Tenant
from cotenant.gpu.terms import Priority

LIMIT_PER_S = 100_000
GIB = 2**20
FLOOR = GIB // 16
STEP_S = 0.01


class Tenants:
    """Tenants that obey, one message a step; a step takes 10 ms of the clock."""

    def __init__(self, count: int, *, wants_work: float) -> None:
        self._random = random.Random(count)
        self._wants_work = wants_work
        self._now = 0.0
        self._ids = [f"tenant-{number}" for number in range(count)]
        self._working: set[str] = set()
        self._asked: set[str] = set()
        self.ledger = Ledger(22 * GIB + count * FLOOR)
        self.decisions = 0
        self.grants = 0
        self.waiting = 0
        self.spent_s = 0.0
        for tenant_id in self._ids:
            self.ledger.join(Tenant(tenant_id, self._random.choice((2, 4, 6, 8, 12)) * GIB, FLOOR, 1.0), self._now)

    def run(self, seconds: float) -> None:
        """Send messages until the ledger has worked for so many seconds."""
        while self.spent_s < seconds:
            for tenant_id in self._random.choices(self._ids, k=1000):
                self._now += STEP_S
                if self._now >= self.ledger.due_at:
                    self._say(self.ledger.tick, self._now)
                self._step(tenant_id)
            self.waiting = max(self.waiting, len(self.ledger.waiting))

    def _step(self, tenant_id: str) -> None:
        """What this tenant says next; nothing while it waits, but that one in twenty gives up."""
        chance, priority = self._random.random(), Priority(self._random.random() < 0.5)
        state = self.ledger.state(tenant_id)
        if tenant_id in self._working:
            self._working.discard(tenant_id)
            self._say(self.ledger.idle, tenant_id, self._now)
        elif state is State.RECALLED:
            self._say(self.ledger.slept, tenant_id, self._now)
        elif state is State.AWAKE:
            if chance < self._wants_work:
                self._working.add(tenant_id)
                self._say(self.ledger.busy, tenant_id, self._now, priority)
        elif tenant_id not in self._asked:
            if chance < self._wants_work:
                self._asked.add(tenant_id)
                self._say(self.ledger.ask, tenant_id, priority, self._now)
        elif chance < 0.05:
            self._asked.discard(tenant_id)
            self._say(self.ledger.withdraw, tenant_id, self._now)

    def _say(self, message: Callable[..., list[Action]], *args: object) -> None:
        started = time.perf_counter()
        actions = message(*args)
        self.spent_s += time.perf_counter() - started
        self.decisions += 1
        for action in actions:
            if isinstance(action, Grant):
                self.grants += 1
                self._asked.discard(action.tenant)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of ledger work for each row")
    args = parser.parse_args()
    slowest = float("inf")
    print(
        f"{'tenants':>7}  {'load':<7}  {'queue up to':>11}  {'decisions':>9}  {'grants':>7}  {'decisions/s':>11}  ratio"
    )
    for count in (20, 100):
        for load, wants_work in (("calm", 0.02), ("crowded", 0.95)):
            tenants = Tenants(count, wants_work=wants_work)
            tenants.run(args.seconds)
            rate = tenants.decisions / tenants.spent_s
            slowest = min(slowest, rate)
            print(
                f"{count:>7}  {load:<7}  {tenants.waiting:>11}  {tenants.decisions:>9,}  {tenants.grants:>7,}  "
                f"{rate:>11,.0f}  {rate / LIMIT_PER_S:.1f}"
            )
    print(f"limit: {LIMIT_PER_S:,} decisions/s (ratio 1)")
    return 0 if slowest >= LIMIT_PER_S else 1


if __name__ == "__main__":
    sys.exit(main())
