"""When a replica was asked for, which it can't know by itself: Serve's controller and Ray's node table are asked.

Its process tells little: Ray keeps some ready, which may have idled for hours. Both interfaces are not public; where
they don't answer, a start begins with the replica's imports.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

import ray
from ray import serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from cotenant.telemetry.logs import event

LOG = logging.getLogger("cotenant.starts")

_ANSWER_S = 10.0


class Asked(NamedTuple):
    """When this replica was asked for, and when its node came up, in Unix seconds; None if that is not known."""

    at: float | None = None
    node_began_at: float | None = None


async def find_out() -> Asked:
    """Of the replica that this process is. Never raises; takes milliseconds, if the controller is not busy."""
    try:
        context = serve.get_replica_context()
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        answer = controller.get_deployment_details.remote(context.app_name, context.deployment)
        details = await asyncio.wait_for(answer, _ANSWER_S)
        times = [one.start_time_s for one in details.replicas if one.replica_id == context.replica_tag]
        nodes = ray._private.worker.global_worker.gcs_client.get_all_node_info()
        here = ray.get_runtime_context().get_node_id()
        began = [node.start_time_ms / 1e3 for node_id, node in nodes.items() if node_id.hex() == here]
        return Asked(next(filter(None, times), None), next(filter(None, began), None))
    except Exception as error:
        # Whatever these internals say: a start without its first stages is better than none.
        event(LOG, "start_not_traced_back", level=logging.WARNING, error=error)
        return Asked()
