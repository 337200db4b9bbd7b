"""Budgets before the plan: `auto` becomes a number, and a number that is too small is refused with the parts.

Always true of what comes out: every budget is a number; every budget whose model's facts are known is at least the
least its workload can serve with, on every accelerator that it may be put on; a workload that may sleep has its
`asleep_gib`, unless its model is a hub's and its budget was declared: then the plan's default for its kind holds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from cotenant.config import GpuBudget, Platform, Workload
from cotenant.errors import PlanError
from cotenant.gpu.accelerators import usable_gib
from cotenant.gpu.fit.estimate import fit_workload
from cotenant.gpu.fit.folder import FactsMissing
from cotenant.gpu.fit.locate import Facts, is_at_hand
from cotenant.gpu.fit.parts import Fit, rounded_up

#: Gives the facts of a workload's model, or None if it can't tell. Raises FactsMissing.
FactsOf = Callable[[Workload], Facts | None]


@dataclass(frozen=True)
class Budgeted:
    """A platform with its budgets filled in, and what of them could not be checked."""

    platform: Platform
    warnings: tuple[str, ...]


def budgeted(platform: Platform, facts_of: FactsOf, facts_from_afar: FactsOf) -> Budgeted:
    """`platform` with every budget a number and checked.

    `facts_of` looks on this machine only; `facts_from_afar`, which may ask a network, is called for an `auto` budget
    of which `facts_of` knows nothing.

    Raises:
        PlanError: an estimate needs facts that are not to be had, or a budget is too small. One line a problem.
    """
    look, far = _remembering(facts_of), _remembering(facts_from_afar)
    usable = _usable(platform)
    workloads: dict[str, Workload] = {}
    warnings: list[str] = []
    unchecked: list[str] = []
    problems: list[str] = []
    for name, workload in platform.workloads.items():
        pools = {pool: usable[pool] for pool in workload.pools or usable if pool in usable}
        auto = workload.gpu.vram_gib == "auto"
        gpu = workload.gpu
        try:
            facts = look(workload)
            if facts is None and auto:
                facts = far(workload)
            why = "" if facts else f"sizes of {', '.join(workload.models)} can't be read from where it lies"
        except FactsMissing as error:
            facts, why = None, str(error)
            if not auto:
                warnings.append(f"{name}: its vram_gib {gpu.gib:g} is not checked: {why}")
        else:
            if facts is None and not auto:
                unchecked.append(f"{name} ({gpu.gib:g} GiB)")
        if facts is None:
            if auto:
                text = f"{name} has vram_gib auto: {why}; write a number"
                problems.append(platform.wrong(text, "workloads", name, "gpu", "vram_gib"))
            workloads[name] = workload
            continue
        asked = _Asked(name, workload, facts, platform, pools)
        if auto:
            gpu, notes = asked.filled()
            warnings += notes
        elif (refusal := asked.refusal()) is not None:
            problems.append(platform.wrong(refusal, "workloads", name, "gpu", "vram_gib"))
        # A hub model may be known on one machine and not on another; the same file has to give the same plan.
        if gpu.asleep_gib is None and workload.residency != "always" and (auto or is_at_hand(workload)):
            gpu = gpu.model_copy(update={"asleep_gib": asked.asleep_gib(gpu.gib)})
        workloads[name] = workload if gpu is workload.gpu else workload.model_copy(update={"gpu": gpu})
    if problems:
        raise PlanError("\n".join(problems))
    if unchecked:
        warnings.append(
            f"not checked, since sizes of their models are not on this machine: budgets of {', '.join(unchecked)}; "
            "`cotenant fit -f FILE -e ENV` asks the hub"
        )
    return Budgeted(platform.model_copy(update={"workloads": workloads}), tuple(warnings))


def _remembering(look: FactsOf) -> FactsOf:
    """`look`, asked once for each model or set of templates."""
    known: dict[Hashable, Facts | None] = {}

    def remembered(workload: Workload) -> Facts | None:
        key = (workload.kind, workload.models, workload.mockup.templates if workload.mockup else ())
        if key not in known:
            known[key] = look(workload)
        return known[key]

    return remembered


def _usable(platform: Platform) -> dict[str, float]:
    """Usable GiB of the GPU pools; those that contradict themselves are left for the plan to refuse."""
    found = {}
    for name, pool in platform.pools.items():
        if pool.holds_workloads:
            try:
                found[name] = usable_gib(name, pool)
            except PlanError:
                continue
    return found


@dataclass
class _Asked:
    """One workload with its facts and the pools it may use (usable GiB by name)."""

    name: str
    workload: Workload
    facts: Facts
    platform: Platform
    pools: dict[str, float]
    _fits: dict[tuple[str, bool], Fit] = field(default_factory=dict)

    def fit(self, pool: str, *, least: bool) -> Fit:
        accelerator = str(self.platform.pools[pool].accelerator)
        if (accelerator, least) not in self._fits:
            made = fit_workload(self.name, self.workload, accelerator, self.facts, least=least)
            self._fits[accelerator, least] = made
        return self._fits[accelerator, least]

    def filled(self) -> tuple[GpuBudget, list[str]]:
        """The budget of the largest typical need. If no GPU has that much: the most that one has, if that serves."""
        gib = max((self.fit(pool, least=False).budget_gib for pool in self.pools), default=0.1)
        most = max(self.pools.values(), default=gib)
        notes = []
        if gib > most and max(self.fit(pool, least=True).budget_gib for pool in self.pools) <= most:
            notes.append(
                f"{self.name}: auto would be {gib:g} GiB for {self.workload.slots} requests at once; the largest GPU "
                f"it may use has {most:g}, which serves fewer at once"
            )
            gib = most
        return self.workload.gpu.model_copy(update={"vram_gib": gib}), notes

    def refusal(self) -> str | None:
        """Why the declared budget does not do, or None. A pool whose GPUs are smaller than it is the plan's affair."""
        have = self.workload.gpu.gib
        short = [pool for pool, usable in self.pools.items() if have <= usable]
        short = [pool for pool in short if self.fit(pool, least=True).total_gib > have]
        if not short:
            return None
        pool = max(short, key=lambda name: self.fit(name, least=True).total_gib)
        fit = self.fit(pool, least=True)
        need = rounded_up(fit.total_gib)
        better = max(need, self.fit(pool, least=False).budget_gib)
        where = f" on {fit.accelerator}" + (f" (pool {pool})" if len(self.pools) > 1 else "")
        lower = "context_tokens" if self.workload.kind == "llm" else "max_size_px"
        return (
            f"{self.name} needs {need:g} GiB{where} to serve anything ({fit.in_words()}), but its vram_gib is "
            f"{have:g}; raise it ({better:g} is what auto takes), or lower {lower}"
        )

    def asleep_gib(self, vram_gib: float) -> float:
        """GiB to book while asleep: the most of any pool's, and at most the budget."""
        floors = (self.fit(pool, least=False).floor_gib for pool in self.pools)
        return min(vram_gib, max(floors, default=vram_gib))
