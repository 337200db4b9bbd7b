"""The GPU agents of a whole Ray cluster: each is an actor that tells what it knows."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cotenant.agent.snapshot import Snapshot
from cotenant.cli.machine import ray_node
from cotenant.cli.machine.state import RunState
from cotenant.errors import EnvironmentFault

#: How `deployments.agent` names the actors, and the namespace that they are in.
AGENT_PREFIX, AGENT_NAMESPACE = "gpu-agent-", "cotenant"
#: How `deployments.scaler` names its actor, in the same namespace.
SCALER = "scaler"
_ANSWER_S = 10.0
_CONNECT_S = 3.0


def agents_of(address: str) -> list[Snapshot]:
    """What the agents of the Ray cluster at `address` know; one that does not answer in time is left out.

    Joins the cluster as a driver, so it must run on one of its nodes (in the head's pod, say).

    Raises:
        EnvironmentFault: there is no such cluster to join, or it has no agent.
    """
    with joined(address) as ray:
        named: list[dict[str, Any]] = ray.util.list_named_actors(all_namespaces=True)
        names = sorted(
            a["name"] for a in named if a["namespace"] == AGENT_NAMESPACE and a["name"].startswith(AGENT_PREFIX)
        )
        asked = [ray.get_actor(name, namespace=AGENT_NAMESPACE).snapshot.remote() for name in names]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
        found = [Snapshot.model_validate(ray.get(each)) for each in answered]
    if not found:
        raise EnvironmentFault(f"the Ray at {address} has no GPU agent that answers; none of its replicas runs?")
    return found


@contextmanager
def joined(address: str) -> Iterator[Any]:
    """The `ray` module, joined as a driver to the cluster at `address`.

    Raises:
        EnvironmentFault: there is no such cluster to join.
    """
    address = _prepare(address)
    import ray  # noqa: PLC0415 - seconds of imports, and it reads the environment as it is imported

    try:
        ray.init(address=address, namespace=AGENT_NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise EnvironmentFault(
            f"can't join the Ray at {address}: {str(error).strip().splitlines()[0]}; where it wants a token, set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _prepare(address: str) -> str:
    """The address to join, once it is known that somebody listens there. For a Ray that `up` started also its token.

    Raises:
        EnvironmentFault: nobody does.
    """
    for state in RunState.all():
        if state.ray_address is not None and address in (state.ray_address, "auto") and state.ray is not None:
            if state.ray.find() is None or state.token_file is None:
                continue
            for name, value in ray_node.ray_environment(Path(state.token_file)).items():
                os.environ.setdefault(name, value)
            return state.ray_address
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        except OSError as error:
            raise EnvironmentFault(
                f"nothing answers at {address} ({error.strerror or error}); give the address of a Ray's GCS, which "
                "`cotenant up` prints"
            ) from None
    return address
