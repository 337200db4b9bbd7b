"""What a failure of Serve, Ray or gRPC means to whoever called a workload: the one place that translates them."""

from __future__ import annotations

import asyncio
import logging

from grpc import StatusCode
from grpc.aio import AioRpcError
from ray.exceptions import ObjectRefStreamEndOfStreamError, RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)

from cotenant.calls.relay import RelayClosed
from cotenant.errors import BudgetExceeded, CallError, Overloaded, ReplicaDied, WorkloadUnavailable
from cotenant.telemetry.logs import event
from deployments import obituaries

LOG = logging.getLogger("cotenant.backend")


async def told(workload: str, error: BaseException) -> CallError:
    """What a failed call means, once the GPU agent was heard: it leaves word of the replicas that it stopped."""
    actor_id = getattr(error, "actor_id", None) if isinstance(error, RayActorError) else None
    if actor_id:
        try:
            why = await asyncio.to_thread(obituaries.find, actor_id)
        except Exception as unheard:
            event(LOG, "obituary_unread", level=logging.WARNING, workload=workload, error=unheard)
        else:
            if why is not None:
                return BudgetExceeded(f"{why}; the request was not repeated")
    return meaning(workload, error)


def meaning(workload: str, error: BaseException) -> CallError:
    """The CallError that a failure of Serve, Ray or gRPC means.

    An engine's own exception comes as itself by gRPC and as a RayTaskError by Ray. One that ended as cancelled though
    nobody here cancelled it was cut off by the replica's end.
    """
    if isinstance(error, RayTaskError) and isinstance(error.cause, (BackPressureError, CallError, RelayClosed)):
        error = error.cause
    match error:
        case CallError():
            return error
        case BackPressureError():
            return Overloaded(f"{workload} has a full queue; come back in a second")
        case RayActorError() | ReplicaUnavailableError() | RequestCancelledError() | TaskCancelledError():
            return ReplicaDied(f"the replica of {workload} died with the request in it; send it again")
        case asyncio.CancelledError() | ObjectRefStreamEndOfStreamError() | RelayClosed():
            return ReplicaDied(f"the replica of {workload} gave the request up; send it again")
        case AioRpcError() if error.code() is StatusCode.CANCELLED:
            return ReplicaDied(f"the replica of {workload} stopped with the request in it; send it again")
        case AioRpcError():
            return WorkloadUnavailable(f"{workload} failed: {error.code().name.lower()}: {error.details()}")
        case DeploymentUnavailableError():
            return WorkloadUnavailable(f"{workload} has no replica that could start; its log says why")
    return WorkloadUnavailable(f"{workload} failed: {last_line(error) or type(error).__name__}")


def last_line(text: object) -> str:
    """What a text that may hold a remote traceback ends with: the exception's own words."""
    lines = str(text).strip().splitlines()
    return lines[-1].strip() if lines else ""
