"""Why replicas were stopped, kept where every node can read it: the cluster's own key-value store.

The GPU agent writes before it stops a replica, so whoever meets the replica's death finds the reason there: a call
that went past its budget must not be repeated as if the replica had died by accident.
"""

from __future__ import annotations

import json
import time

from ray.experimental import internal_kv

from cotenant.agent.node import Obituary

#: A call may outlive its replica by its deadline at the most.
KEPT_S = 3600.0
_NAMESPACE = b"cotenant"
_PREFIX = "obituary:"


def write(obituary: Obituary) -> None:
    """Keep the reason, and drop those that nobody can ask for any more. Blocks on the cluster's store."""
    content = json.dumps({"at": obituary.at, "text": obituary.text, "past_budget": obituary.past_budget})
    internal_kv._internal_kv_put(_key(obituary.actor_id), content.encode(), overwrite=True, namespace=_NAMESPACE)
    for key in internal_kv._internal_kv_list(_PREFIX.encode(), namespace=_NAMESPACE):
        kept = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
        if kept is not None and json.loads(kept)["at"] < time.time() - KEPT_S:
            internal_kv._internal_kv_del(key, namespace=_NAMESPACE)


def find(actor_id: str) -> str | None:
    """Why the agent stopped that actor past its budget; None if it did not. Blocks on the cluster's store.

    One stopped for what it kept asleep was not stopped for its calls: those may be sent again.
    """
    kept = internal_kv._internal_kv_get(_key(actor_id), namespace=_NAMESPACE)
    said = None if kept is None else json.loads(kept)
    return str(said["text"]) if said is not None and said["past_budget"] else None


def _key(actor_id: str) -> bytes:
    return f"{_PREFIX}{actor_id}".encode()
