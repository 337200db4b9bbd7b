"""Has Ray drain a node: nothing new is placed there, and Serve moves its replicas to others.

Serve (2.60) starts a replacement elsewhere first and stops the old replica once that runs, or when so much time is
left as the replica may take to stop. What is called is what `ray drain-node` calls.
"""

from __future__ import annotations

import time

from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.experimental.internal_kv import internal_kv_get_gcs_client

_CALL_S = 10


def drain(node_id: str, *, why: str, within_s: float) -> bool:
    """Drain a node that will be gone `within_s` seconds from now; whether Ray accepted. Blocking.

    Raises:
        ray.exceptions.RpcError: the head can't be reached.
    """
    gone_at_ms = int((time.time() + within_s) * 1000)
    accepted, _ = internal_kv_get_gcs_client().drain_node(
        node_id, DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, why, gone_at_ms, timeout=_CALL_S
    )
    return bool(accepted)
