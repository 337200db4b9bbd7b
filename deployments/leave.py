"""Lets a Ray node go: `python -m deployments.leave`, the `preStop` hook of a Ray pod.

A worker drains its node and returns when nothing of ours runs there any more. Everything that runs in a pool takes a
crumb of the pool's resource (`cotenant-pool-…`), so a node is empty when all of it is there again. The head returns
when no other node is being drained: a cluster that is deleted loses all its pods at once, and without a head nothing
drains.
Whatever goes wrong is logged, and ends it: the node goes in any case, and what it cuts off is called again elsewhere.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import click
import ray
from ray.experimental.internal_kv import internal_kv_get_gcs_client

from cotenant.manifests.pools import is_pool_resource
from cotenant.telemetry.logs import configure_logs, event
from deployments.draining import drain

LOG = logging.getLogger("cotenant.leave")
_LOOK_S = 1.0
_CALL_S = 10
_CONNECT_S = 30.0
#: Pods that are deleted together begin to drain within so long of each other: Python starts, and finds Ray.
_TOGETHER_S = 20.0
#: What a worker that finds no head gives its replicas to finish, as far as they can without one.
_BLIND_S = 60.0


def is_empty(total: Mapping[str, float], available: Mapping[str, float]) -> bool:
    """Whether all of a node's pool resources are free. A node that Ray doesn't list any more is."""
    ours = {name: amount for name, amount in total.items() if is_pool_resource(name)}
    return all(available.get(name, 0.0) >= amount for name, amount in ours.items()) if available else not ours


def wait_until(
    done: Callable[[], bool], *, within_s: float, clock: Callable[[], float], pause: Callable[[float], None]
) -> bool:
    """Whether `done` said so within the time."""
    end_s = clock() + within_s
    while not done():
        if clock() >= end_s:
            return False
        pause(min(_LOOK_S, max(0.0, end_s - clock())))
    return True


@click.command()
@click.option("--within", "within_s", type=float, required=True, help="Seconds that what runs here may take to end.")
@click.option("--node", help="Id of the node (default: the one that this runs on).")
@click.option("--head", is_flag=True, help="This is the head: wait for nodes that are being drained.")
def leave(within_s: float, node: str | None, head: bool) -> None:
    """Drain a node and wait until nothing runs on it."""
    configure_logs()
    begun_s = time.monotonic()

    def wait(done: Callable[[], bool], left_s: float) -> bool:
        return wait_until(done, within_s=left_s, clock=time.monotonic, pause=time.sleep)

    try:
        _connect()
        if head:
            time.sleep(min(_TOGETHER_S, within_s))
            empty = wait(lambda: not _draining(), within_s - (time.monotonic() - begun_s))
        else:
            node_id = node or ray.get_runtime_context().get_node_id()
            if not drain(node_id, why="the pod is to go", within_s=within_s):
                event(LOG, "leave_refused", node=node_id)
                return
            empty = wait(lambda: _looks_empty(node_id), within_s - (time.monotonic() - begun_s))
        event(LOG, "node_left", node=node or "this one", empty=empty, seconds=round(time.monotonic() - begun_s, 1))
    except Exception as error:
        event(LOG, "left_blindly", level=logging.WARNING, error=error)
        if not head:
            time.sleep(min(_BLIND_S, within_s))
        # Past Ray's own end, which looks for the head again.
        os._exit(0)


def _connect() -> None:
    """Find the Ray of this node. Raises TimeoutError: its head is not there (Ray itself would try for minutes)."""
    failed: list[BaseException] = []

    def connect() -> None:
        try:
            ray.init(address="auto", logging_level=logging.WARNING, log_to_driver=False)
        except BaseException as error:
            failed.append(error)

    trying = threading.Thread(target=connect, daemon=True)
    trying.start()
    trying.join(_CONNECT_S)
    if trying.is_alive():
        raise TimeoutError(f"the head of this Ray did not answer within {_CONNECT_S:.0f} s")
    if failed:
        raise failed[0]


def _looks_empty(node_id: str) -> bool:
    here = [each for each in _alive() if each["NodeID"] == node_id]
    total: Mapping[str, float] = here[0]["Resources"] if here else {}
    available: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()
    return is_empty(total, available.get(node_id, {}))


def _draining() -> Collection[str]:
    """Nodes that are there and being drained."""
    found: Mapping[str, int] = internal_kv_get_gcs_client().get_draining_nodes(timeout=_CALL_S)
    return {each["NodeID"] for each in _alive()} & set(found)


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


if __name__ == "__main__":
    leave()
