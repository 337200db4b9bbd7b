"""Keeps Serve's replicas on loopback where the platform runs on one machine for itself.

Every Serve replica opens a gRPC port for calls from other deployments. Ray's token guards it, but it listens on all
interfaces whatever address the node has, and there is no setting for that. A replica opens it only after its class
was made, so importing this package in time is enough to name the address. Ray is pinned to one version, and an
acceptance test looks at what the running platform listens on.
"""

import os
from typing import Any

#: Set to 1 by `cotenant up` for the Ray that it starts.
VARIABLE = "COTENANT_LOOPBACK_ONLY"


def keep() -> None:
    """Make this process's Serve replica, if it is one, listen on 127.0.0.1 only. Does nothing unless told to."""
    if os.environ.get(VARIABLE) != "1":
        return
    from ray.serve._private import replica  # noqa: PLC0415 - a private module, needed in a replica only

    add_port = replica.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> Any:
        return add_port(server, "127.0.0.1:" + address.rsplit(":", 1)[1])

    replica.add_port_to_grpc_server = add_loopback_port
