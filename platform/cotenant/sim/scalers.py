"""What scales in a simulation: our own policy, and what people use instead of it."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass, field

from cotenant.scaling.policy import AIMS, Aims, decide
from cotenant.scaling.terms import Memory, Situation, Target
from cotenant.sim.model import View


@dataclass
class Cotenant:
    """The policy of the running platform."""

    name: str = "cotenant"
    every_s: float = 1.0
    aims: Aims = AIMS
    _memory: dict[int, Memory] = field(default_factory=dict)

    def target(self, workload: int, view: View, now: float) -> Target:
        situation = Situation(view.demand, view.supply, view.starts)
        target, self._memory[workload] = decide(
            view.bounds, situation, self._memory.get(workload, Memory()), now, self.aims
        )
        return target


@dataclass
class FixedPeak:
    """So many replicas all the time: by default as many as there may be."""

    replicas: int | None = None
    name: str = "fixed peak"
    every_s: float = 60.0

    def target(self, workload: int, view: View, now: float) -> Target:
        del workload, now
        return Target(view.bounds.max if self.replicas is None else view.bounds.clamp(self.replicas))


@dataclass
class HpaOnMetric:
    """Kubernetes' horizontal pod autoscaler on `num_undelivered_messages`, as Cloud Monitoring shows it.

    Kubernetes, "Horizontal Pod Autoscaling": synchronised every 15 s; `ceil(metric / target value)` for an external
    metric of the type Value scales the present number by metric / target, AverageValue gives metric / target; a
    tolerance of 0.1; the highest of the last 300 s on the way down; on the way up at most the double, or four more,
    each 15 s. The metric is written every 60 s and readable after up to 120 s more (Cloud Monitoring, "Latency of
    metric data").
    """

    per_replica: float = 1.0
    lag_s: float = 60.0
    sample_s: float = 60.0
    stabilization_s: float = 300.0
    tolerance: float = 0.1
    name: str = "HPA on the queue metric"
    every_s: float = 15.0
    _seen: dict[int, deque[tuple[float, int]]] = field(default_factory=lambda: defaultdict(deque))
    _wanted: dict[int, deque[tuple[float, int]]] = field(default_factory=lambda: defaultdict(deque))
    _shown: dict[int, int | None] = field(default_factory=dict)

    def target(self, workload: int, view: View, now: float) -> Target:
        bounds, present = view.bounds, view.supply.replicas
        metric = self._look(workload, view.demand.waiting + view.demand.running, now)
        wanted = math.ceil(metric / self.per_replica) if metric is not None else present
        if present and abs(wanted / present - 1) <= self.tolerance:
            wanted = present
        # An HPA does not scale below one.
        wanted = max(1, bounds.clamp(wanted))
        past = self._wanted[workload]
        past.append((now, wanted))
        while past[0][0] < now - self.stabilization_s:
            past.popleft()
        down_to = max(one for _, one in past)
        up_to = max(2 * present, present + 4)
        return Target(bounds.clamp(min(wanted, up_to) if wanted > present else min(present, down_to)))

    def shown(self, workload: int) -> int | None:
        """What the metric showed when it was last looked at; None before its first point can be read."""
        return self._shown.get(workload)

    def _look(self, workload: int, undelivered: int, now: float) -> int | None:
        """The last point that is old enough to be readable."""
        seen = self._seen[workload]
        if not seen or now - seen[-1][0] >= self.sample_s:
            seen.append((now, undelivered))
        while len(seen) > 1 and seen[1][0] <= now - self.lag_s:
            seen.popleft()
        self._shown[workload] = seen[0][1] if seen[0][0] <= now - self.lag_s else None
        return self._shown[workload]


@dataclass
class Keda(HpaOnMetric):
    """KEDA's Pub/Sub scaler: an HPA on the same metric, which it also starts from zero and takes back to it.

    KEDA 2, "Scaling Deployments": `pollingInterval` 30 s, `cooldownPeriod` 300 s after it was last active. What the
    metric shows is two to three minutes old, as users report.
    """

    lag_s: float = 150.0
    cooldown_s: float = 300.0
    name: str = "KEDA"
    _active_s: dict[int, float] = field(default_factory=dict)

    def target(self, workload: int, view: View, now: float) -> Target:
        wanted = super().target(workload, view, now)
        metric = self.shown(workload)
        if metric:
            self._active_s[workload] = now
        if now - self._active_s.get(workload, -math.inf) >= self.cooldown_s:
            return Target(view.bounds.clamp(0))
        return wanted


@dataclass
class ServeDefault:
    """Ray Serve's own policy: ongoing requests over a target, averaged over 30 s, with its default delays.

    Ray 2.60, `AutoscalingConfig`: `target_ongoing_requests`, `look_back_period_s` 30, `upscale_delay_s` 30,
    `downscale_delay_s` 600; the desired number has to persist for the delay.
    """

    busy: float = 0.75
    """The target, as a part of a replica's slots."""
    look_back_s: float = 30.0
    up_s: float = 30.0
    down_s: float = 600.0
    name: str = "Serve's default"
    every_s: float = 1.0
    _ongoing: dict[int, deque[tuple[float, int]]] = field(default_factory=lambda: defaultdict(deque))
    _since: dict[int, tuple[int, float]] = field(default_factory=dict)

    def target(self, workload: int, view: View, now: float) -> Target:
        ongoing, bounds = self._ongoing[workload], view.bounds
        ongoing.append((now, view.demand.waiting + view.demand.running))
        while ongoing[0][0] < now - self.look_back_s:
            ongoing.popleft()
        mean = sum(count for _, count in ongoing) / len(ongoing)
        present = view.supply.replicas
        if present == 0:  # a request to nothing starts one at once
            return Target(bounds.clamp(1 if view.demand.busy else 0))
        wanted = bounds.clamp(math.ceil(mean / max(1.0, self.busy * bounds.slots)))
        direction = (wanted > present) - (wanted < present)
        before, since = self._since.get(workload, (0, now))
        if direction != before:
            since = now
        self._since[workload] = (direction, since)
        delay_s = self.up_s if direction > 0 else self.down_s
        return Target(wanted if direction and now - since >= delay_s else bounds.clamp(present))
