"""Keeps nodes ready: looks at the cluster, decides (`scaling.headroom`, `scaling.forecast`) and asks Ray's autoscaler.

Where no autoscaler runs, asking has no effect and does no harm. What is asked for stands until something else is, in
Ray's own books, so it outlives whoever hosts this; it is repeated once a minute, since a head that starts anew has
forgotten it. There is one such request in a cluster: nothing else may call `request_resources` there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import NodeStatus
from ray.experimental.internal_kv import internal_kv_get_gcs_client

from cotenant.scaling.forecast import Forecast, NeedHistory
from cotenant.scaling.headroom import Ask, Kept, NodeView, PoolTerms, Resources, Use, ask_for, decide, use_of
from cotenant.telemetry.logs import event
from cotenant.telemetry.series import Metric, Row
from deployments.published import Published

LOG = logging.getLogger("cotenant.headroom")

METRICS = (
    Metric("cotenant_nodes", "gauge", "Nodes of a pool: busy, idle, draining, or missing.", ("pool", "state")),
    Metric("cotenant_nodes_wanted", "gauge", "Nodes that the pool should have.", ("pool",)),
    Metric("cotenant_nodes_forecast", "gauge", "Nodes that will be needed before a new one could serve.", ("pool",)),
)
_ASK_AGAIN_S = 60.0
#: A forecast looks ahead for so many times what a node takes to start.
_MARGIN = 1.5


@dataclass
class _Pool:
    terms: PoolTerms
    forecast: Forecast
    kept: Kept = field(default_factory=Kept)
    wanted: int = -1


class Headroom:
    """The nodes of all pools. Blocking, and for one thread at a time."""

    def __init__(
        self, terms: Sequence[Mapping[str, Any]], *, node_start_s: float = 180.0, state: Mapping[str, Any] | None = None
    ) -> None:
        """Look after these pools.

        Args:
            terms: `manifests.nodes.headroom_terms`.
            node_start_s: seconds from asking for a node until a replica on it serves.
            state: what `state` once returned, so that forecasts need not be learned again.

        Raises:
            TypeError: `terms` are none.
        """
        histories = (state or {}).get("needs") or {}
        self._pools = [
            _Pool(pool, Forecast(_MARGIN * node_start_s, NeedHistory.from_plain(histories.get(pool.name))))
            for pool in map(PoolTerms.from_plain, terms)
        ]
        self._published = Published(METRICS)
        self._asked: Ask | None = None
        self._asked_at = 0.0
        self._trouble = ""

    def keep(self, now: float) -> None:
        """Look, decide, and ask if something changed. Never raises: the next call tries again.

        Args:
            now: seconds since the epoch (`time.time()`), for the time of day tells what is to come.
        """
        try:
            self._keep(now)
        except Exception as error:
            # Whatever Ray's calls raise; said once, not every few seconds.
            if self._trouble != type(error).__name__:
                event(LOG, "nodes_not_looked_after", level=logging.WARNING, error=error)
            self._trouble = type(error).__name__
            return
        self._trouble = ""

    def state(self) -> dict[str, Any]:
        """What is worth keeping over a restart, fit for JSON: some 10 KB a pool at the most."""
        return {"needs": {pool.terms.name: pool.forecast.history.to_plain() for pool in self._pools}}

    def _keep(self, now: float) -> None:
        nodes, waiting = _cluster()
        rows: list[Row] = []
        wanted: list[tuple[PoolTerms, Use, int]] = []
        for pool in self._pools:
            use = use_of(pool.terms, nodes, waiting)
            pool.forecast.history.saw(now, use.need)
            forecast = pool.forecast.peak(now) if pool.terms.max > pool.terms.min else 0
            count, pool.kept = decide(pool.terms, use.need, forecast, pool.kept, now=now)
            if count != pool.wanted:
                event(
                    LOG, "nodes_wanted", pool=pool.terms.name, wanted=count, before=max(0, pool.wanted),
                    in_use=len(use.busy), missing=use.missing, forecast=forecast, spare=pool.terms.spare,
                )  # fmt: skip
            pool.wanted = count
            wanted.append((pool.terms, use, count))
            rows += _rows(pool.terms.name, use, count, forecast)
        self._published.publish(rows)
        self._ask(ask_for(wanted, apart=is_autoscaler_v2()), now)

    def _ask(self, ask: Ask, now: float) -> None:
        if ask == self._asked and 0 <= now - self._asked_at < _ASK_AGAIN_S:
            return
        request_resources(
            bundles=[dict(bundle) for bundle in ask.bundles],
            bundle_label_selectors=[dict(labels) for labels in ask.selectors] or None,
        )
        self._asked, self._asked_at = ask, now


def let_go() -> None:
    """Ask for no nodes any more."""
    request_resources(bundles=[])


def _cluster() -> tuple[list[NodeView], list[Resources]]:
    """All nodes that are alive, and what waits for a place. One call to the head, which knows both."""
    state = get_cluster_resource_state(internal_kv_get_gcs_client())
    nodes = [
        NodeView(
            node.node_id.hex(),
            dict(node.total_resources),
            dict(node.available_resources),
            draining=node.status == NodeStatus.DRAINING,
        )
        for node in state.node_states
        if node.status != NodeStatus.DEAD
    ]
    waiting: list[Resources] = []
    for each in state.pending_resource_requests:
        waiting += [dict(each.request.resources_bundle)] * each.count
    for gang in state.pending_gang_resource_requests:
        waiting += [dict(one.resources_bundle) for one in gang.requests]
    return nodes, waiting


def _rows(pool: str, use: Use, wanted: int, forecast: int) -> Iterator[Row]:
    states = {"busy": len(use.busy), "idle": len(use.idle), "draining": len(use.draining), "missing": use.missing}
    yield from (Row("cotenant_nodes", {"pool": pool, "state": state}, count) for state, count in states.items())
    yield Row("cotenant_nodes_wanted", {"pool": pool}, wanted)
    yield Row("cotenant_nodes_forecast", {"pool": pool}, forecast)
