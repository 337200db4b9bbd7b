"""What a call to a replica costs in CPU time: by Ray's actors, by Serve's gRPC, and several on one trip.

    python benchmarks/trips.py [--rounds 3] [--calls 1600] [--json FILE]

A Serve replica makes the calls as the doors do, through `ServeBackend`, eight ways at a time, to a workload of 2
replicas with 4 slots that answers at once. Printed are ms of CPU a call: of the caller, and of all of Ray's processes
together. On a trip the answers are ready in one moment, or one after the other ("apart"). Rounds take the ways in
turn; the figures are medians.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import psutil

from cotenant.calls import Call, Reply
from deployments.replica import DEPLOYMENT, Answering

WORKLOAD = "bench"
#: Name, calls a trip, way, and seconds between the answers of a trip.
WAYS = (
    ("alone, by actors", 1, "actors", 0.0),
    ("alone, by gRPC", 1, "gRPC", 0.0),
    ("4 a trip", 4, "gRPC", 0.0),
    ("4 a trip, apart", 4, "gRPC", 0.002),
    ("32 a trip", 32, "gRPC", 0.0),
    ("32 a trip, apart", 32, "gRPC", 0.002),
)
AT_ONCE = 8
LIMIT_ENV = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"


class Engine(Answering):
    """Answers after as many seconds as the body says."""

    async def call(self, call: Call) -> Reply:
        await asyncio.sleep(float(call.body.split(b",")[0]))
        return Reply(200, b'{"object": "chat.completion"}')


class Caller:
    """A door: makes calls, and says how much CPU time that took it."""

    def __init__(self) -> None:
        self._backends: dict[str, Any] = {}

    async def measure(self, calls: int, together: int, way: str, apart_s: float) -> tuple[float, float]:
        """CPU seconds and seconds."""
        from deployments import handles
        from deployments.backend import ServeBackend

        handles.LIMIT_BYTES = 1 << 30 if way == "gRPC" else 1 << 20  # type: ignore[misc]
        backend = self._backends.setdefault(way, ServeBackend())
        trips = iter(range(calls // together))

        async def caller() -> None:
            for _ in trips:
                if together == 1:
                    await backend.call(WORKLOAD, self._call(0.0))
                else:
                    trip = backend.call_many(WORKLOAD, [self._call(n * apart_s) for n in range(together)])
                    answers = [answer async for some in trip for _, answer in some]
                    assert all(isinstance(answer, Reply) for answer in answers), answers
                    assert len(answers) == together

        await backend.call(WORKLOAD, self._call(0.0))
        cpu_s, began = time.process_time(), time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
        return time.process_time() - cpu_s, time.perf_counter() - began

    def _call(self, sleep_s: float) -> Call:
        return Call("/v1/x", b"%f," % sleep_s + b"x" * 300, request_id="job_0123456789", deadline_s=60, batch=True)


def ray_cpu_s() -> float:
    """CPU seconds of all processes beneath this one."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=1600, help="a round and way")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ[LIMIT_ENV] = str(1 << 30)
    import ray
    from ray import serve

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    few = {"num_cpus": 0.1}
    engine = serve.deployment(Engine, name="Replica", num_replicas=2, ray_actor_options=few, **DEPLOYMENT)
    serve.run(engine.options(max_ongoing_requests=4).bind(), name=WORKLOAD, route_prefix=None)
    caller = serve.run(serve.deployment(Caller, ray_actor_options=few).bind(), name="caller", route_prefix=None)
    spent: dict[str, list[tuple[float, float, float]]] = {name: [] for name, *_ in WAYS}
    for _ in range(arguments.rounds):
        for name, together, way, apart_s in WAYS:
            before = ray_cpu_s()
            cpu_s, took_s = caller.measure.remote(arguments.calls, together, way, apart_s).result(timeout_s=300)
            ms = 1000 / arguments.calls
            spent[name].append((cpu_s * ms, (ray_cpu_s() - before) * ms, arguments.calls / took_s))
    figures = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in spent.items()}
    print(f"{'':18} {'caller':>8} {'all of Ray':>11} {'calls/s':>8}")
    for name, (caller_ms, all_ms, per_s) in figures.items():
        print(f"{name:18} {caller_ms:8.3f} {all_ms:11.3f} {per_s:8.0f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
