"""The workloads of the chaos test, as Serve applications: an engine that only sleeps, and the real renderer.

Both write a line to a file of their process when a run begins and when it ends, so that afterwards every second of
engine time is known, also of runs that were cut short. A body says what its run does; see `Engine.call`.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.deployment import Application

from cotenant.calls import Call, Reply, error_reply
from cotenant.config import MockupSpec
from cotenant.gpu.terms import Terms
from deployments import mockup
from deployments.replica import Answering


class EngineArguments(BaseModel):
    """`folder` is where runs are noted; another `generation` is another version of the application."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str
    workload: str
    generation: int = 0


class RendererArguments(BaseModel):
    """Those of the mockup application, and where runs are noted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    terms: Terms
    spec: MockupSpec
    folder: str
    workload: str
    generation: int = 0


class Notebook:
    """The runs of this process, in a file of its own."""

    def __init__(self, folder: str, workload: str) -> None:
        self._pid = os.getpid()
        path = Path(folder) / "runs" / f"{workload}-{self._pid}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: what was noted before a SIGKILL stays.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._workload = workload
        self._count = 0

    @contextmanager
    def run(self, job: str) -> Iterator[dict[str, Any]]:
        """Note a run; what is put under `status` is noted with its end."""
        self._count += 1
        run = f"{self._workload}-{self._pid}-{self._count}"
        self._note(run=run, job=job, event="begin", workload=self._workload, pid=self._pid)
        said: dict[str, Any] = {}
        try:
            yield said
        finally:
            self._note(run=run, event="end", status=said.get("status"))

    def _note(self, **fields: Any) -> None:
        os.write(self._file, json.dumps({**fields, "at_s": time.time()}).encode() + b"\n")


class Engine(Answering):
    """Sleeps."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        parsed = EngineArguments.model_validate(arguments)
        self._marks = Path(parsed.folder) / "marks"
        self._marks.mkdir(parents=True, exist_ok=True)
        self._notes = Notebook(parsed.folder, parsed.workload)

    async def call(self, call: Call) -> Reply:
        """Takes `seconds`, then ends as `ending` says: a status, `once` (500 the first time), `die` (SIGKILL the first
        time). Says `nonce` back, and who it was."""
        body = json.loads(call.body)
        with self._notes.run(call.request_id) as said:
            await asyncio.sleep(body.get("seconds", 0.0))
            ending = body.get("ending", 200)
            if ending in ("once", "die"):
                first = self._first_time(call.request_id)
                if first and ending == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                ending = 500 if first else 200
            said["status"] = ending
            if ending != 200:
                return error_reply(ending, "as the body says")
            told = {"nonce": body.get("nonce"), "by": os.getpid(), "pad": "x" * body.get("pad", 0)}
            return Reply(200, json.dumps(told).encode())

    def _first_time(self, job: str) -> bool:
        try:
            os.close(os.open(self._marks / job, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


class Renderer(mockup.Replica):
    """The real one, with a notebook."""

    async def __init__(self, arguments: dict[str, Any]) -> None:  # type: ignore[misc]
        parsed = RendererArguments.model_validate(arguments)
        self._notes = Notebook(parsed.folder, parsed.workload)
        own = {"terms": parsed.terms.model_dump(mode="json"), "spec": parsed.spec.model_dump(mode="json")}
        await super().__init__(own)

    async def call(self, call: Call) -> Reply:
        with self._notes.run(call.request_id) as said:
            reply = await super().call(call)
            said["status"] = reply.status
            return reply


def build_engine(args: EngineArguments) -> Application:
    return serve.deployment(Engine, name="Replica").bind(args.model_dump(mode="json"))


def build_renderer(args: RendererArguments) -> Application:
    return serve.deployment(Renderer, name="Replica").bind(args.model_dump(mode="json"))
