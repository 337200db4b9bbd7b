"""Ray's settings that every node of ours has, on one machine as on Kubernetes."""

from __future__ import annotations

#: The largest message between Serve's processes: the largest request body and the largest reply, with room.
GRPC_MESSAGE_BYTES = 2**30
#: What Ray's worker processes import before they are asked for anything, so that a replica need not: Serve and what
#: every replica has. `PRELOAD` is Ray's own setting; a module that is not there is passed over.
PRELOAD, PRELOADED = "RAY_preload_python_modules", ("ray.serve._private.replica", "deployments.replica")
#: The version of Ray in the images, which KubeRay wants to know.
RAY_VERSION = "2.60.0"


def shared_settings() -> dict[str, str]:
    """Environment variables for every Ray process, that is for `ray start`."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Calls and replies go by Serve's gRPC, and pictures are larger than its 4 MiB (deployments/handles.py).
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(GRPC_MESSAGE_BYTES),
    }
