"""`cotenant plan --add … --gpus …`: the same file with something changed, and what that makes of GPUs and cost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from cotenant.config import GpuBudget, MockupSpec, Nodes, Platform, Replicas
from cotenant.config.base import NAME_PATTERN
from cotenant.config.model import RESERVED_NAMES
from cotenant.cost import Cost
from cotenant.errors import PlanError
from cotenant.gpu.accelerators import gpus_per_node
from cotenant.gpu.advice import Supposed
from cotenant.gpu.plan import Plan

_ADD = re.compile(r"^(?P<name>[^=]+)=(?P<gib>[0-9]+(?:\.[0-9]+)?)(?:x(?P<replicas>[0-9]+))?$")
_GPUS = re.compile(r"^(?:(?P<pool>[^=]+)=)?(?P<gpus>[0-9]+)$")
_MOST = 10_000

#: A plan and what it costs a month.
Priced = tuple[Plan, Cost]


@dataclass(frozen=True)
class Added:
    """A workload that is not in the file: always resident, all replicas all the time."""

    name: str
    gib: float
    replicas: int

    def __str__(self) -> str:
        return f"{self.name} {self.replicas} x {self.gib:g} GiB"

    @property
    def source(self) -> str:
        """As it is given on the command line."""
        times = "" if self.replicas == 1 else f"x{self.replicas}"
        return f"--add {self.name}={self.gib:g}{times}"

    @property
    def workload(self) -> Supposed:
        return Supposed(
            source=self.source,
            mockup=MockupSpec(),
            gpu=GpuBudget(vram_gib=self.gib),
            replicas=Replicas(min=self.replicas, max=self.replicas),
        )


@dataclass
class WhatIf:
    """What is changed: workloads added, and GPUs a pool may have, by pool.

    The pool may be None, the only one there is; once `of` was called, which knows it, it has its name.
    """

    added: tuple[Added, ...]
    gpus: Mapping[str | None, int]

    def __bool__(self) -> bool:
        return bool(self.added or self.gpus)

    def __str__(self) -> str:
        pools = [f"{f'pool {pool}' if pool else 'pool'} with {_gpus(count)}" for pool, count in self.gpus.items()]
        return ", ".join([*map(str, self.added), *pools])

    def of(self, platform: Platform) -> Platform:
        """The platform with the changes in it. Raises click.BadParameter where they don't go with it."""
        workloads = dict(platform.workloads)
        for one in self.added:
            if one.name in workloads:
                raise _bad("--add", f"{one.name!r} is a workload of the file already; give the new one another name")
            workloads[one.name] = one.workload
        named = _by_name(self.gpus, platform)
        self.gpus = dict(named.items())
        pools = dict(platform.pools)
        for name, count in named.items():
            per_node = gpus_per_node(name, pools[name])
            if count % per_node:
                near = -(-count // per_node) * per_node
                raise _bad("--gpus", f"a node of pool {name} has {per_node} GPUs; say a multiple of that, e.g. {near}")
            nodes = count // per_node
            pools[name] = pools[name].model_copy(
                update={"nodes": Nodes(min=min(pools[name].nodes.min, nodes), max=nodes)}
            )
        return platform.model_copy(update={"workloads": workloads, "pools": pools})


def what_if(added: Iterable[str], gpus: Iterable[str]) -> WhatIf:
    """Reads `--add NAME=GIB[xN]` and `--gpus [POOL=]N`. Raises click.BadParameter for what is neither."""
    wanted: dict[str | None, int] = {}
    for text in gpus:
        match = _GPUS.match(text)
        if match is None or not 1 <= int(match["gpus"]) <= _MOST:
            raise _bad("--gpus", f"takes a number of GPUs, or POOL=NUMBER, up to {_MOST}; got {text!r}")
        if match["pool"] in wanted:
            raise _bad("--gpus", f"--gpus names {match['pool'] or 'the pool'} twice; give it one number")
        wanted[match["pool"]] = int(match["gpus"])
    every = tuple(_added(text) for text in added)
    for i, one in enumerate(every):
        if one.name in {earlier.name for earlier in every[:i]}:
            raise _bad("--add", f"--add names {one.name} twice; give the second another name")
    return WhatIf(every, wanted)


def _added(text: str) -> Added:
    match = _ADD.match(text)
    if match is None:
        raise _bad("--add", f"takes NAME=GIB or NAME=GIBxREPLICAS, e.g. captions=4x2; got {text!r}")
    one = Added(match["name"], float(match["gib"]), int(match["replicas"] or 1))
    if one.name in RESERVED_NAMES:
        raise _bad("--add", f"{one.name!r} is a front door's name; call the workload something else")
    if not re.match(NAME_PATTERN, one.name):
        raise _bad("--add", f"{one.name!r} can't be a workload's name: lower-case letters, digits and hyphens, please")
    if not 0 < one.gib <= 65_536 or not 1 <= one.replicas <= _MOST:
        raise _bad("--add", f"{text!r}: GiB must be more than 0, replicas from 1 to {_MOST}")
    return one


def _by_name(gpus: Mapping[str | None, int], platform: Platform) -> dict[str, int]:
    """The same, with the pool's name in the place of None."""
    named: dict[str, int] = {}
    for wanted, count in gpus.items():
        name = _pool(wanted, platform)
        if name in named:
            raise _bad("--gpus", f"--gpus names {name} twice; give it one number")
        named[name] = count
    return named


def _pool(wanted: str | None, platform: Platform) -> str:
    having = [name for name, pool in platform.pools.items() if pool.holds_workloads]
    if wanted is None:
        if len(having) > 1:
            raise _bad("--gpus", f"say which pool, e.g. --gpus {having[0]}=4; there are {', '.join(having)}")
        return having[0]
    if wanted not in having:
        raise _bad("--gpus", f"there is no GPU pool {wanted!r}; there is {', '.join(having)}")
    return wanted


def _bad(option: str, message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint=option)


def attempt(make: Callable[[], Priced]) -> tuple[Priced | None, str]:
    """The plan, or None and why there is none."""
    try:
        return make(), ""
    except PlanError as refused:
        return None, str(refused)


def difference(change: WhatIf, before: Priced | None, after: Priced) -> str:
    """What the change costs, in a few sentences."""
    plan, cost = after
    if before is None:
        needs = f"needs {_gpus(plan.gpus_needed)} with every replica, {plan.gpus_needed_at_min} at minimum"
        return f"What if {change}: {needs}. The file as it is does not fit."
    was, had = before
    priced = any(pool.usd_per_h for pool in cost.pools)
    at_max = _change(plan.gpus_needed - was.gpus_needed, cost.gpu_usd_at_max - had.gpu_usd_at_max, priced=priced)
    at_min = _change(
        plan.gpus_needed_at_min - was.gpus_needed_at_min, cost.gpu_usd_at_min - had.gpu_usd_at_min, priced=priced
    )
    text = f"What if {change}: {at_max} with every replica; {at_min} at minimum."
    more, fewer = _room(was, plan)
    if more:
        text += f" Room for {more} more of the file's own replicas than now."
    if fewer:
        text += f" {fewer} of the file's own replicas that have room now would have none."
    return text


def as_data(change: WhatIf, before: Priced | None, after: Priced | None, why: str) -> dict[str, Any]:
    """The same as plain data; `null` where there is nothing to compare with."""
    data: dict[str, Any] = {
        "add": [{"name": one.name, "vram_gib": one.gib, "replicas": one.replicas} for one in change.added],
        "gpus": {pool or "": count for pool, count in change.gpus.items()},
        "fits": after is not None,
        "why_not": why.splitlines(),
    }
    differences = ("gpus_more", "gpus_more_at_min", "monthly_usd_more", "monthly_usd_more_at_min", "room_for_more")
    if before is None or after is None:
        return data | dict.fromkeys(differences)
    (was, had), (plan, cost) = before, after
    more, fewer = _room(was, plan)
    values = (
        plan.gpus_needed - was.gpus_needed,
        plan.gpus_needed_at_min - was.gpus_needed_at_min,
        round(cost.gpu_usd_at_max - had.gpu_usd_at_max, 2),
        round(cost.gpu_usd_at_min - had.gpu_usd_at_min, 2),
        more - fewer,
    )
    return data | dict(zip(differences, values, strict=True))


def _room(was: Plan, plan: Plan) -> tuple[int, int]:
    """Replicas of the file's workloads that find room only with the change, and only without it."""
    gained = [plan.workloads[name].placed_max - booking.placed_max for name, booking in was.workloads.items()]
    return sum(n for n in gained if n > 0), -sum(n for n in gained if n < 0)


def _change(gpus: int, usd: float, *, priced: bool) -> str:
    text = f"{_gpus(abs(gpus))} {'more' if gpus > 0 else 'fewer'}" if gpus else "no further GPU"
    if not priced:
        return text
    if not round(usd):
        return f"{text} and the same cost"
    return f"{text}, {'-' if usd < 0 else '+'}${abs(usd):,.0f} a month"


def _gpus(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"
