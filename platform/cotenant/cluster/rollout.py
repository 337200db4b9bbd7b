"""An environment put into a cluster: what would change, changing it, and seeing it come up.

Always true: nothing is changed before everything was tried with the API server's own dry run, and nothing that was
applied is taken back by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from cotenant.cluster.alignment import Alignment, ahead
from cotenant.cluster.bounds import Shift
from cotenant.cluster.diff import difference
from cotenant.cluster.edge import Clock, Cluster, SystemClock
from cotenant.cluster.objects import EVENT, NAMESPACE, POD, RAY_SERVICE, Object, Ref, Target, kind_of, labelled, ref_of
from cotenant.cluster.order import in_order, kinds_to_search, left_over, namespaces_of
from cotenant.cluster.pods import CLUSTER, Group, groups
from cotenant.cluster.rayservice import ServiceState, read
from cotenant.cluster.verdict import Memory, Patience, Verdict, judge
from cotenant.cluster.watching import Watched
from cotenant.errors import ClusterBusy, KindMissing, NamespaceMissing, NotPermitted, RolloutFailed

Action = Literal["create", "change", "same", "delete"]


@dataclass(frozen=True)
class Step:
    """What happens to one object. `diff` is empty where nothing does."""

    ref: Ref
    action: Action
    diff: str


@dataclass(frozen=True)
class Proposal:
    """Everything that an apply would do, in order; `things` are what is applied, `bounds` what is then passed on."""

    things: tuple[Object, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    bounds: tuple[Shift, ...] = ()

    @property
    def size(self) -> int:
        """How many changes there are, of all sorts."""
        return len(self.changes) + len(self.bounds)

    @property
    def changes(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.action != "same")

    @property
    def deletions(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.action == "delete")


def propose(
    cluster: Cluster, rendered: Iterable[Mapping[str, Any]], target: Target, *, force: bool = False, prune: bool = True
) -> Proposal:
    """What applying `rendered` would change. Changes nothing.

    Raises ClusterError: some object is refused, is of a kind that the cluster lacks, or has fields that are somebody
    else's; all of that is found here, before anything is applied.
    """
    things = in_order(labelled(rendered, target.labels))
    made = namespaces_of(things)
    new_namespaces = {name for name in made if cluster.get(Ref(NAMESPACE, name)) is None}
    tried = [_try(cluster, thing, new_namespaces, force) for thing in things]
    steps = [step for step, _ in tried]
    notes = [note for _, found in tried for note in found.notes]
    bounds = tuple(shift for _, found in tried for shift in found.shifts)
    if prune and target.namespace not in new_namespaces:
        found, unseen = _found(cluster, things, target)
        notes += unseen
        for ref in left_over(found, things, target.labels):
            live = next(thing for thing in found if ref_of(thing) == ref)
            steps.append(Step(ref, "delete", difference(live, None, str(ref))))
    return Proposal(tuple(dict(thing) for thing in things), tuple(steps), tuple(notes), bounds)


def _try(cluster: Cluster, thing: Mapping[str, Any], new_namespaces: set[str], force: bool) -> tuple[Step, Alignment]:
    """What an apply would do to one object, and what is to be passed on to a Ray cluster then."""
    ref = ref_of(thing)
    if ref.namespace in new_namespaces:
        cluster.get(ref)  # whether the cluster knows the kind
        return Step(ref, "create", difference(None, thing, str(ref))), Alignment()
    live = cluster.get(ref)
    after = cluster.apply(thing, dry_run=True, force=force)
    diff = difference(live, after, str(ref))
    step = Step(ref, "create" if live is None else "change" if diff else "same", diff)
    if live is None or ref.kind != RAY_SERVICE:
        return step, Alignment()
    return step, ahead(cluster, live, after)


def _found(cluster: Cluster, things: Sequence[Mapping[str, Any]], target: Target) -> tuple[list[Object], list[str]]:
    """All that carries the environment's labels, and what could not be looked through."""
    found: dict[Ref, Object] = {}
    notes = []
    for kind in kinds_to_search(things):
        try:
            listed = cluster.list(kind, target.namespace, target.labels)
        except KindMissing:
            continue
        except NotPermitted:
            notes.append(f"may not list {kind.name}s, so none is deleted that is not rendered any more")
            continue
        found.update({ref_of(each): each for each in listed.items})
    return list(found.values()), notes


def make_namespaces(cluster: Cluster, proposal: Proposal, *, force: bool = False) -> None:
    """The first of what is applied: the revision that notes the rest needs its namespace."""
    for thing in proposal.things:
        if kind_of(thing) == NAMESPACE:
            cluster.apply(thing, force=force)


def carry_out(
    cluster: Cluster, proposal: Proposal, *, force: bool = False, on_step: Callable[[Step], object] = lambda _: None
) -> Object | None:
    """Apply and delete as proposed. Returns the RayService as applied, if there is one.

    Raises ClusterError; what was done until then stays, and doing it again goes on from there.
    """
    service: Object | None = None
    steps = {step.ref: step for step in proposal.steps}
    for thing in proposal.things:
        applied = cluster.apply(thing, force=force)
        on_step(steps[ref_of(thing)])
        if kind_of(thing) == RAY_SERVICE:
            service = applied
    for step in proposal.deletions:
        cluster.delete(step.ref)
        on_step(step)
    return service


def find_service(cluster: Cluster, target: Target) -> Object | None:
    """The environment's RayService, by its labels. Raises KindMissing."""
    listed = cluster.list(RAY_SERVICE, target.namespace, target.labels)
    return listed.items[0] if listed.items else None


@dataclass(frozen=True)
class Progress:
    """How a rollout stands: everything that a reader is shown."""

    service: ServiceState
    groups: tuple[Group, ...]
    verdict: Verdict
    elapsed_s: float
    notes: tuple[str, ...] = ()


def look(cluster: Cluster, service: ServiceState) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """The pods of its Ray clusters, and what could not be seen."""
    clusters = [name for name in (service.pending, service.active) if name]
    if not clusters:
        return (), ()
    notes: list[str] = []
    pods: list[Object] = []
    events: list[Object] = []
    try:
        for name in clusters:
            pods += cluster.list(POD, service.namespace, {CLUSTER: name}).items
        events += cluster.list(EVENT, service.namespace).items
    except NotPermitted as error:
        notes.append(f"why pods wait is not seen: {str(error).splitlines()[0]}")
    return groups(pods, events, clusters), tuple(notes)


def see_through(
    cluster: Cluster,
    applied: Object,
    *,
    timeout_s: float,
    look_s: float = 3.0,
    patience: Patience | None = None,
    clock: Clock | None = None,
) -> Iterator[Progress]:
    """Watch until it is healthy or has failed; each look is a progress, and the last one has that verdict.

    An API server that does not answer is waited for, as all else.

    Raises:
        RolloutFailed: `timeout_s` have passed; with what was waited for.
    """
    clock, patience = clock or SystemClock(), patience or Patience()
    begun = clock.now()
    memory = Memory(begun, updated_before=read(applied).updated)
    watched = Watched(cluster, ref_of(applied))
    service, seen, notes = read(applied), (), ()  # type: tuple[ServiceState, tuple[Group, ...], tuple[str, ...]]
    least = service.generation
    looked_at = begun - look_s
    while True:
        lost: tuple[str, ...] = ()
        try:
            live = watched.next(look_s)
            if live is None:
                raise RolloutFailed(f"RayService {service.name} was deleted while it came up; deploy again")
            # A cache of the API server may be older than our own apply.
            service = replace(read(live), generation=max(least, read(live).generation))
            if clock.now() - looked_at >= look_s:
                seen, notes = look(cluster, service)
                looked_at = clock.now()
        except ClusterBusy as error:
            lost = (str(error),)
            clock.sleep(look_s)
        memory, verdict = judge(memory, service, seen, clock.now(), patience)
        elapsed_s = clock.now() - begun
        yield Progress(service, seen, verdict, elapsed_s, (*notes, *lost))
        if verdict.standing != "waiting":
            return
        if elapsed_s >= timeout_s:
            waited = "\n".join(verdict.reasons)
            raise RolloutFailed(f"not healthy after {timeout_s:.0f} s; it stays applied and may come up yet:\n{waited}")


def require_namespace(cluster: Cluster, target: Target, things: Sequence[Mapping[str, Any]]) -> None:
    """Raises NamespaceMissing: it is not there, and nothing makes it."""
    if target.namespace in namespaces_of(list(things)):
        return
    try:
        there = cluster.get(Ref(NAMESPACE, target.namespace))
    except NotPermitted:  # whoever may deploy need not be able to read namespaces
        return
    if there is None:
        raise NamespaceMissing(
            f"there is no namespace {target.namespace} in {cluster.where}; make it with\n"
            f"  kubectl create namespace {target.namespace}"
        )
