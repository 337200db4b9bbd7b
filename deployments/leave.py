"""Drains the node that this runs on, and returns when nothing of ours runs there: `python -m deployments.leave`.

For the `preStop` hook of a Ray pod. Everything that runs in a pool takes a crumb of the pool's resource
(`cotenant-pool-…`), so a node is empty when all of it is there again. Whatever goes wrong is said and ends it: the node
goes in any case, and what it cuts off is called again elsewhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import click
import ray

from cotenant.manifests.pools import is_pool_resource
from cotenant.telemetry.logs import configure_logs, event
from deployments.draining import drain

LOG = logging.getLogger("cotenant.leave")
_LOOK_S = 1.0


def is_empty(total: Mapping[str, float], available: Mapping[str, float]) -> bool:
    """Whether all of a node's pool resources are free. A node that Ray doesn't list any more is."""
    ours = {name: amount for name, amount in total.items() if is_pool_resource(name)}
    return all(available.get(name, 0.0) >= amount for name, amount in ours.items()) if available else not ours


def wait_until_empty(
    look: Callable[[], bool], *, within_s: float, clock: Callable[[], float], pause: Callable[[float], None]
) -> bool:
    """Whether `look` said so within the time."""
    end_s = clock() + within_s
    while not look():
        if clock() >= end_s:
            return False
        pause(min(_LOOK_S, max(0.0, end_s - clock())))
    return True


@click.command()
@click.option("--within", "within_s", type=float, required=True, help="Seconds that what runs here may take to end.")
@click.option("--node", help="Id of the node (default: the one that this runs on).")
def leave(within_s: float, node: str | None) -> None:
    """Drain a node and wait until nothing runs on it."""
    configure_logs()
    begun_s = time.monotonic()
    ray.init(address="auto", logging_level=logging.WARNING, log_to_driver=False)
    try:
        node_id = node or ray.get_runtime_context().get_node_id()
        if not drain(node_id, why="the pod is to go", within_s=within_s):
            event(LOG, "leave_refused", node=node_id)
            return
        left_s = within_s - (time.monotonic() - begun_s)
        empty = wait_until_empty(lambda: _looks_empty(node_id), within_s=left_s, clock=time.monotonic, pause=time.sleep)
        event(LOG, "node_left", node=node_id, empty=empty, seconds=round(time.monotonic() - begun_s, 1))
    finally:
        ray.shutdown()


def _looks_empty(node_id: str) -> bool:
    nodes: list[dict[str, Any]] = ray.nodes()
    total: Mapping[str, float] = next(
        (node["Resources"] for node in nodes if node["NodeID"] == node_id and node["Alive"]), {}
    )
    available: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()
    return is_empty(total, available.get(node_id, {}))


if __name__ == "__main__":
    leave()
