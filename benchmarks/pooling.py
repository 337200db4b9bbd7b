"""GPUs needed for a skewed mix of models at equal p95 wait: own GPUs, swapping, or asleep between turns (simulated).

    python benchmarks/pooling.py [--seed 1] [--hours 24] [--targets 20 30 45] [--json FILE]

A day of requests is replayed under a fake clock. The GPUs' memory is kept by the very `Ledger` that the GPU agent
uses; what is simulated are the models and the time that they take. Three ways of holding the same models:

  own      each model has a GPU to itself and is always awake
  swap     models share GPUs; one that is not awake is cold: each switch loads it (p50 23 s, p95 45 s)
  tiers    models share GPUs; one that is not awake is asleep: each switch wakes it (3 s)

For each target the smallest number of GPUs is searched at which 95 % of the requests wait no longer. A wait lasts from
a request's arrival until its work begins. Same seed, same output.

Taken from measured fleets: load times, the wake, the skew (of 86 models the first gets 31 % of the requests, Zipf) and
the 7 % of the time that a GPU is at work. The 79 models are given 2 %: with 7 % the first of them alone would keep 1.7
GPUs at work, and one GPU a model could not be.

Assumed: requests arrive independently of each other (Poisson); work takes 5 s at the median, 15 s at p95 (log-normal);
a GPU has 76 usable GiB, models take 12 to 30 GiB awake and 0.6 asleep, giving memory back takes 0.5 s; host memory
holds all that sleep (printed); a GPU works on one request at a time, in order of arrival, whichever model it is for,
while others load or wake; each model lives on one GPU, balanced by load; all requests are interactive.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cotenant.gpu.ledger import Action, Grant, Ledger, NoRoom, Tenant
from cotenant.gpu.terms import Priority

GIB = 2**20
USABLE_GIB = 76.0
SIZES_GIB = (12.0, 18.0, 24.0, 30.0)
ASLEEP_GIB = 0.6
WAKE_S = 3.0
SLEEP_S = 0.5
LOAD_P50_S, LOAD_P95_S = 23.0, 45.0
WORK_P50_S, WORK_P95_S = 5.0, 15.0
FLEET_MODELS, FLEET_TOP_SHARE = 86, 0.31
WARM_UP_S = 3600.0
Z95 = 1.6448536269514722
"""The standard normal distribution's 95 % point."""


@dataclass(frozen=True)
class Mix:
    """How many models, and the part of the time that a GPU of its own would be at work for one of them, on average."""

    name: str
    models: int
    duty: float


MIXES = (Mix("20 models", 20, 0.07), Mix("79 models", 79, 0.02))


@dataclass(frozen=True)
class Request:
    at: float
    model: int
    work_s: float


@dataclass(frozen=True)
class Outcome:
    """A number of GPUs, what it gave, and the host memory for all models of the fullest GPU."""

    gpus: int
    requests: int
    wait_p50_s: float
    wait_p95_s: float
    switches: int
    host_gib: float


@dataclass
class Model:
    """A model on a GPU."""

    tenant: Tenant
    pending: deque[Request] = field(default_factory=deque)
    awake: bool = False
    asked: bool = False
    recalled: bool = False


class Gpu:
    """One GPU and its models, replayed event by event."""

    def __init__(self, tenants: dict[int, Tenant], wake_s: Callable[[], float]) -> None:
        """Raises NoRoom if these models can't share a GPU."""
        self._ledger = Ledger(round(USABLE_GIB * GIB))
        for tenant in tenants.values():
            self._ledger.join(tenant, 0.0)
        self._models = {number: Model(tenant) for number, tenant in tenants.items()}
        self._by_id = {model.tenant.id: model for model in self._models.values()}
        self._wake_s = wake_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._now = 0.0
        self._ticks_at = math.inf
        self._running: Model | None = None
        self.waits: list[tuple[float, float]] = []
        self.switches = 0

    def replay(self, requests: Sequence[Request]) -> None:
        """Work off all requests, given in order of arrival. `waits` then has (arrival, wait) of each."""
        for request in requests:
            while self._events and self._events[0][0] <= request.at:
                self._step()
            self._now = request.at
            self._arrive(request)
        while self._events:
            self._step()
        if len(self.waits) != len(requests):
            raise RuntimeError(f"{len(requests) - len(self.waits)} of {len(requests)} requests were never served")

    def _step(self) -> None:
        self._now, _, happen = heapq.heappop(self._events)
        happen()

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self._now + seconds, self._count, happen))

    def _arrive(self, request: Request) -> None:
        model = self._models[request.model]
        model.pending.append(request)
        if model.awake and not model.recalled:
            self._act(self._ledger.busy(model.tenant.id, self._now, Priority.INTERACTIVE))
            self._serve()
        elif not model.asked:
            self._ask(model)

    def _ask(self, model: Model) -> None:
        model.asked = True
        self._act(self._ledger.ask(model.tenant.id, Priority.INTERACTIVE, self._now))

    def _serve(self) -> None:
        """Begin with the request that waits longest of those whose model is awake."""
        ready = [model for model in self._models.values() if model.awake and not model.recalled and model.pending]
        if self._running is not None or not ready:
            return
        model = min(ready, key=lambda one: one.pending[0].at)
        request = model.pending.popleft()
        self.waits.append((request.at, self._now - request.at))
        self._running = model
        self._after(request.work_s, lambda: self._finish(model))

    def _finish(self, model: Model) -> None:
        self._running = None
        if model.recalled:
            self._after(SLEEP_S, lambda: self._slept(model))
        elif not model.pending:
            self._act(self._ledger.idle(model.tenant.id, self._now))
        self._serve()

    def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            model = self._by_id[action.tenant]
            if isinstance(action, Grant):
                self.switches += 1
                self._after(self._wake_s(), lambda model=model: self._woke(model))  # type: ignore[misc]
            elif not model.recalled:
                model.recalled = True
                if model.awake and self._running is not model:
                    self._after(SLEEP_S, lambda model=model: self._slept(model))  # type: ignore[misc]
                if model.pending and not model.asked:
                    self._ask(model)
        due_at = self._ledger.due_at
        if due_at < self._ticks_at:
            self._ticks_at = due_at
            self._after(max(0.0, due_at - self._now), self._tick)

    def _tick(self) -> None:
        self._ticks_at = math.inf
        self._act(self._ledger.tick(self._now))

    def _woke(self, model: Model) -> None:
        model.awake, model.asked = True, False
        if model.recalled:
            self._after(SLEEP_S, lambda: self._slept(model))
            self._ask(model)
            return
        self._act(self._ledger.busy(model.tenant.id, self._now, Priority.INTERACTIVE))
        self._serve()

    def _slept(self, model: Model) -> None:
        model.awake = model.recalled = False
        self._act(self._ledger.slept(model.tenant.id, self._now))


def log_normal(chance: random.Random, p50: float, p95: float) -> float:
    return chance.lognormvariate(math.log(p50), math.log(p95 / p50) / Z95)


def zipf_exponent(models: int, top_share: float) -> float:
    """The exponent with which the first of so many models gets this share of the requests."""
    low, high = 0.0, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        share = 1 / sum(rank**-middle for rank in range(1, models + 1))
        low, high = (middle, high) if share < top_share else (low, middle)
    return low


def weights_of(mix: Mix) -> list[float]:
    exponent = zipf_exponent(FLEET_MODELS, FLEET_TOP_SHARE)
    weights = [rank**-exponent for rank in range(1, mix.models + 1)]
    return [weight / sum(weights) for weight in weights]


def trace(mix: Mix, hours: float, seed: int) -> list[Request]:
    chance = random.Random(f"{seed} {mix.name}")
    sigma = math.log(WORK_P95_S / WORK_P50_S) / Z95
    per_s = mix.duty * mix.models / (WORK_P50_S * math.exp(sigma**2 / 2))
    weights = weights_of(mix)
    requests: list[Request] = []
    at = chance.expovariate(per_s)
    while at < hours * 3600:
        model = chance.choices(range(mix.models), weights)[0]
        requests.append(Request(at, model, log_normal(chance, WORK_P50_S, WORK_P95_S)))
        at += chance.expovariate(per_s)
    return requests


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of them does not exceed."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def tenants_of(mix: Mix, *, asleep_gib: float, wake_s: float, seed: int) -> list[Tenant]:
    chance = random.Random(f"{seed} sizes {mix.name}")
    return [
        Tenant(f"model-{number}", round(chance.choice(SIZES_GIB) * GIB), round(asleep_gib * GIB), wake_s)
        for number in range(mix.models)
    ]


def spread(mix: Mix, gpus: int) -> list[list[int]]:
    """Models by GPU: the most wanted first, each to the GPU with the least load so far, then the fewest models."""
    weights = weights_of(mix)
    homes: list[list[int]] = [[] for _ in range(gpus)]
    load = [0.0] * gpus
    for model, weight in enumerate(weights):
        home = min(range(gpus), key=lambda one: (load[one], len(homes[one])))
        homes[home].append(model)
        load[home] += weight
    return homes


def measure(
    mix: Mix, requests: Sequence[Request], homes: list[list[int]], tenants: list[Tenant], wake: Callable[[], float]
) -> Outcome | None:
    """What these homes give; None if some GPU has no room for its models."""
    waits: list[float] = []
    switches, host_gib = 0, 0.0
    for home in homes:
        try:
            gpu = Gpu({number: tenants[number] for number in home}, wake)
        except NoRoom:
            return None
        here = set(home)
        gpu.replay([request for request in requests if request.model in here])
        waits += [wait for at, wait in gpu.waits if at >= WARM_UP_S]
        switches += gpu.switches
        host_gib = max(host_gib, sum(tenants[number].full_kib for number in home) / GIB)
    return Outcome(len(homes), len(waits), percentile(waits, 0.5), percentile(waits, 0.95), switches, host_gib)


def try_all(mix: Mix, strictest_s: float, measured: Callable[[int], Outcome | None]) -> list[Outcome]:
    """What each number of GPUs gives, from what the load needs upwards, to one that keeps the strictest target."""
    tried: list[Outcome] = []
    for gpus in range(max(1, math.ceil(mix.duty * mix.models)), mix.models + 1):
        outcome = measured(gpus)
        if outcome is not None:
            tried.append(outcome)
            if outcome.wait_p95_s <= strictest_s:
                break
    return tried


def compare(mix: Mix, hours: float, seed: int, targets_s: Sequence[float]) -> dict[str, list[Outcome]]:
    """What was tried of each way."""
    requests = trace(mix, hours, seed)

    def shared(asleep_gib: float, wake_s: float, drawn: Callable[[random.Random], float]) -> list[Outcome]:
        tenants = tenants_of(mix, asleep_gib=asleep_gib, wake_s=wake_s, seed=seed)

        def measured(gpus: int) -> Outcome | None:
            chance = random.Random(f"{seed} {gpus} {mix.name}")
            return measure(mix, requests, spread(mix, gpus), tenants, lambda: drawn(chance))

        return try_all(mix, min(targets_s), measured)

    alone = tenants_of(mix, asleep_gib=0.0, wake_s=0.0, seed=seed)
    own = measure(mix, requests, [[model] for model in range(mix.models)], alone, lambda: 0.0)
    return {
        "own": [] if own is None else [own],
        "swap": shared(0.0, LOAD_P50_S, lambda chance: log_normal(chance, LOAD_P50_S, LOAD_P95_S)),
        "tiers": shared(ASLEEP_GIB, WAKE_S, lambda chance: WAKE_S),
    }


def best(tried: dict[str, list[Outcome]], target_s: float) -> dict[str, Outcome | None]:
    """Of each way the fewest GPUs that keep the target."""
    return {
        way: next((outcome for outcome in outcomes if outcome.wait_p95_s <= target_s), None)
        for way, outcomes in tried.items()
    }


def show(mix: Mix, tried: dict[str, list[Outcome]], targets_s: Sequence[float]) -> None:
    print(f"{mix.name}, GPUs of their own at work {mix.duty:.0%} of the time, {tried['own'][0].requests:,} requests")
    print("  p95 wait  way    GPUs  of own  p50 s  p95 s  switches  host GiB")
    for target_s in targets_s:
        for way, found in best(tried, target_s).items():
            head = f"  <= {target_s:>3g} s  {way:<5}"
            if found is None:
                print(f"{head}  none keeps it")
                continue
            host = f"{found.host_gib:>8.0f}" if way == "tiers" else f"{'-':>8}"
            print(
                f"{head}  {found.gpus:>4}  {found.gpus / mix.models:>6.2f}  {found.wait_p50_s:>5.1f}  "
                f"{found.wait_p95_s:>5.1f}  {found.switches:>8,}  {host}"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hours", type=float, default=24.0, help="of simulated time; the first hour is not counted")
    parser.add_argument("--targets", type=float, nargs="+", default=[20.0, 30.0, 45.0], help="p95 waits, in seconds")
    parser.add_argument("--json", type=Path, help="write all that was tried there")
    args = parser.parse_args()
    if args.hours * 3600 <= WARM_UP_S:
        parser.error("--hours must be more than 1: the first hour is not counted")
    report = []
    for mix in MIXES:
        tried = compare(mix, args.hours, args.seed, args.targets)
        show(mix, tried, args.targets)
        gpus = {
            f"{target_s:g}": {way: found and found.gpus for way, found in best(tried, target_s).items()}
            for target_s in args.targets
        }
        report.append({"mix": asdict(mix), "gpus_by_target_s": gpus, "tried": tried})
    print("simulated; host GiB: the host memory for the models of the fullest GPU, were all asleep")
    if args.json:
        args.json.write_text(json.dumps(report, default=asdict, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
