"""The GPU agents of a whole Ray cluster: each is an actor that tells what it knows."""

from __future__ import annotations

import os
from typing import Any

from cotenant.agent.snapshot import Snapshot
from cotenant.errors import EnvironmentFault

#: How `deployments.agent` names the actors, and the namespace that they are in.
AGENT_PREFIX, AGENT_NAMESPACE = "gpu-agent-", "cotenant"
_ANSWER_S = 10.0


def agents_of(address: str) -> list[Snapshot]:
    """What the agents of the Ray cluster at `address` know; one that does not answer in time is left out.

    Joins the cluster as a driver, so it must run on one of its nodes (in the head's pod, say).

    Raises:
        EnvironmentFault: there is no such cluster to join, or it has no agent.
    """
    import ray  # noqa: PLC0415 - seconds of imports that a look at this machine does without

    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        ray.init(address=address, namespace=AGENT_NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EnvironmentFault(f"can't join the Ray at {address}: {str(error).splitlines()[0]}") from None
    try:
        named: list[dict[str, Any]] = ray.util.list_named_actors(all_namespaces=True)
        names = sorted(
            a["name"] for a in named if a["namespace"] == AGENT_NAMESPACE and a["name"].startswith(AGENT_PREFIX)
        )
        asked = [ray.get_actor(name, namespace=AGENT_NAMESPACE).snapshot.remote() for name in names]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
        found = [Snapshot.model_validate(ray.get(each)) for each in answered]
    finally:
        ray.shutdown()
    if not found:
        raise EnvironmentFault(f"the Ray at {address} has no GPU agent that answers; none of its replicas runs?")
    return found
