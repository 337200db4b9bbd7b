"""The platform file as typed, frozen models: the one description everything else is derived from.

Always true of a value that got this far: keys are known, units are as named, ranges are possible, each
workload has exactly one kind. Whether it *fits* is the plan's question (`cotenant.gpu.plan`), not this one's.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Kind = Literal["llm", "mockup"]
KINDS: tuple[Kind, ...] = ("llm", "mockup")

#: What a workload, pool or environment may be called: it becomes part of Serve, Ray and Kubernetes names.
NAME_PATTERN = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]

#: Names of the Serve applications that are not workloads.
RESERVED_NAMES = frozenset({"gateway", "ingress"})

_QUANTITY = re.compile(r"^\s*([0-9.]+)\s*([KMGT]i?B?|B|MB|GB|GiB|MiB)\s*$", re.IGNORECASE)
_BYTES = {"": 1, "k": 1e3, "ki": 2**10, "m": 1e6, "mi": 2**20, "g": 1e9, "gi": 2**30, "t": 1e12, "ti": 2**40}


def _gib_number(value: Any) -> Any:
    """Refuse `"5GB"` for a key that says GiB, and tell the number that was meant."""
    if isinstance(value, bool):
        raise ValueError("takes a number of GiB")
    if isinstance(value, str):
        match = _QUANTITY.match(value)
        if not match:
            raise ValueError(f"takes a number of GiB, without a unit; got {value!r}")
        unit = match[2].lower().removesuffix("b")
        gib = float(match[1]) * _BYTES.get(unit, 1) / 2**30
        raise ValueError(f"takes a number of GiB, without a unit; for {value!r} write {gib:.4g}")
    return value


Gib = Annotated[float, BeforeValidator(_gib_number), Field(gt=0, le=65536)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class LlmSpec(Model):
    """A language model served by vLLM behind the OpenAI routes."""

    model: str = Field(
        min_length=1,
        description="smollm2-135m (bundled), a local folder, a hub id, or an object-store URI (s3://, gs://).",
    )
    context_tokens: int = Field(4096, ge=128, le=10_000_000, description="Longest prompt plus answer, in tokens.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Weight and activation type; auto is what the model says."
    )
    engine: dict[str, Any] = Field(
        default_factory=dict,
        description="Further vLLM engine arguments, passed on as they are (e.g. quantization, tensor_parallel_size).",
    )


class MockupSpec(Model):
    """A 3D-mockup renderer: Mitsuba, warm scenes, artwork swapped per request."""

    templates: tuple[str, ...] = Field(
        ("mug", "poster"),
        min_length=1,
        description="Bundled template names, or paths of GLB files with a material named artwork.",
    )
    max_size_px: int = Field(2048, ge=16, le=8192, description="Longest side of a render, in pixels.")
    max_samples: int = Field(256, ge=1, le=4096, description="Most samples per pixel a request may ask for.")
    variant: Literal["auto", "cuda", "llvm", "scalar"] = Field(
        "auto", description="Mitsuba back end; auto takes the fastest one that a probe found working."
    )


class GpuBudget(Model):
    """What a replica may hold of one GPU."""

    vram_gib: Gib = Field(description="VRAM budget of one replica in GiB; becomes its share of the GPU (num_gpus).")


class Replicas(Model):
    """How many replicas run: never under min, never over max."""

    min: int = Field(1, ge=0, le=10_000, description="Replicas that always run.")
    max: int = Field(1, ge=1, le=10_000, description="Replicas at the most.")

    @model_validator(mode="before")
    @classmethod
    def _max_follows_min(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("min"), int) and "max" not in data:
            return {**data, "max": max(1, data["min"])}
        return data

    @model_validator(mode="after")
    def _range_is_possible(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; raise max or lower min")
        return self


class Workload(Model):
    """A named thing served: one Serve application. Exactly one kind (llm, mockup) must be given."""

    llm: LlmSpec | None = None
    mockup: MockupSpec | None = None
    gpu: GpuBudget = Field(description="The budget of one replica.")
    cpus: float = Field(1, gt=0, le=1024, description="CPU cores a replica books on its node.")
    concurrency: int | None = Field(
        None, ge=1, le=4096, description="Requests a replica works on at once (default: llm 32, mockup 2)."
    )
    queue: int = Field(256, ge=1, le=100_000, description="Requests that may wait at one gateway before it says 429.")
    deadline_s: float = Field(300, gt=0, le=86_400, description="A request is cancelled and answered 504 after this.")
    replicas: Replicas = Field(default_factory=Replicas)
    pools: tuple[str, ...] = Field((), description="GPU pools it may run in (default: any it fits, cheapest first).")

    @model_validator(mode="before")
    @classmethod
    def _exactly_one_kind(cls, data: Any) -> Any:
        if isinstance(data, dict):
            given = [kind for kind in KINDS if data.get(kind) is not None]
            if len(given) != 1:
                have = " and ".join(given) or "neither"
                raise ValueError(f"needs exactly one kind of {', '.join(KINDS)}; it has {have}")
        return data

    @property
    def kind(self) -> Kind:
        return "llm" if self.llm is not None else "mockup"

    @property
    def slots(self) -> int:
        """Requests one replica works on at once: Serve's `max_ongoing_requests`."""
        return self.concurrency or (32 if self.kind == "llm" else 2)

    @property
    def models(self) -> tuple[str, ...]:
        """Names a request may ask for in `model`, the public one first; empty unless an LLM."""
        return (self.llm.model,) if self.llm is not None else ()


class Nodes(Model):
    """How many nodes a pool has."""

    min: int = Field(0, ge=0, le=10_000, description="Nodes that always run.")
    max: int = Field(1, ge=1, le=10_000, description="Nodes at the most.")

    _max_follows_min = model_validator(mode="before")(Replicas._max_follows_min.__func__)  # type: ignore[attr-defined]

    @model_validator(mode="after")
    def _range_is_possible(self) -> Nodes:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; raise max or lower min")
        return self


class Pool(Model):
    """Identical nodes. With an accelerator it holds workloads; without one it holds gateway and ingress."""

    accelerator: str | None = Field(
        None, description="GPU type of the pool (nvidia-l4, nvidia-tesla-t4, …), cpu for a virtual GPU, or none."
    )
    machine: str | None = Field(None, description="Machine type, e.g. g2-standard-8.")
    vram_gib: Gib | None = Field(
        None, description="Usable GiB of one GPU; needed for cpu, otherwise from the accelerator catalogue."
    )
    gpus_per_node: int = Field(1, ge=1, le=16, description="GPUs of one node.")
    nodes: Nodes = Field(default_factory=lambda: Nodes(min=0, max=1))
    spot: bool = Field(False, description="Take spot capacity: cheaper, and may be reclaimed.")
    usd_per_h: float | None = Field(
        None, ge=0, description="Price of one node per hour; default from the dated price table."
    )

    @model_validator(mode="before")
    @classmethod
    def _cpu_needs_vram(cls, data: Any) -> Any:
        if isinstance(data, dict):
            accelerator = data.get("accelerator")
            if accelerator == "cpu" and data.get("vram_gib") is None:
                raise ValueError("accelerator cpu needs vram_gib: how much memory its virtual GPU has")
            if accelerator is None and data.get("vram_gib") is not None:
                raise ValueError("vram_gib is given without an accelerator; name the accelerator or drop vram_gib")
        return data

    @property
    def holds_workloads(self) -> bool:
        return self.accelerator is not None


class Jobs(Model):
    """Where batch jobs come from and where their results go."""

    project: str = Field("cotenant", description="Google Cloud project of the topics (any name on the emulator).")
    topic: str = Field("jobs", description="Topic that jobs are published to.")
    subscription: str = Field("jobs-cotenant", description="Subscription the ingress pulls from.")
    results: str = Field("results", description="Topic that result messages are published to.")
    dead_letter: str = Field("dead", description="Topic for messages that can never succeed, with the reason.")
    max_attempts: int = Field(5, ge=1, le=100, description="Deliveries of one job before it is dead-lettered.")
    store: str = Field(
        "./results", description="Where result objects go: a folder, gs://bucket/prefix, s3://bucket/prefix or memory://."
    )
    lease_s: int = Field(60, ge=10, le=600, description="Message lease (ack deadline); extended while work runs.")
    ingresses: int = Field(1, ge=0, le=100, description="Ingress replicas; 0 serves no jobs.")
    look_ahead: int = Field(2, ge=0, le=1000, description="Jobs held beyond the free slots, to hide the pull.")


class Gateway(Model):
    """The HTTP door."""

    keys_env: str | None = Field(
        "COTENANT_API_KEYS", description="Environment variable with API keys: tenant:key, comma-separated."
    )
    keys_file: str | None = Field(None, description="File with one tenant:key a line.")
    host: str = Field("127.0.0.1", description="Address the HTTP door listens on.")
    port: int = Field(8000, ge=1, le=65535, description="Port the HTTP door listens on.")
    replicas: int = Field(1, ge=1, le=1000, description="Gateway replicas.")
    max_body_mib: float = Field(32, gt=0, le=1024, description="Largest request body; artwork itself is capped at 20.")


class Gke(Model):
    """Where on Google Cloud this environment lives."""

    project: str = Field(min_length=1)
    region: str = Field(min_length=1)


class Platform(Model):
    """One environment's platform: the file with that environment's values merged over the shared ones."""

    name: Name = Field("cotenant", description="Name of the platform; prefixes what is created for it.")
    environment: str
    workloads: dict[Name, Workload] = Field(min_length=1)
    jobs: Jobs = Field(default_factory=Jobs)
    gateway: Gateway = Field(default_factory=Gateway)
    pools: dict[Name, Pool] = Field(min_length=1)
    gke: Gke | None = None

    @model_validator(mode="after")
    def _names_agree(self) -> Platform:
        for name, workload in self.workloads.items():
            if name in RESERVED_NAMES:
                raise ValueError(f"{name!r} is a front door's name; call the workload something else")
            for pool in workload.pools:
                if pool not in self.pools:
                    raise ValueError(f"workload {name} names pool {pool!r}; this environment has {', '.join(self.pools)}")
                if not self.pools[pool].holds_workloads:
                    raise ValueError(f"workload {name} names pool {pool!r}, which has no accelerator")
        if not any(pool.holds_workloads for pool in self.pools.values()):
            raise ValueError("no pool has an accelerator, so no workload can run; give one (cpu will do) an accelerator")
        models: dict[str, str] = {}
        for name, workload in self.workloads.items():
            for model in (name, *workload.models):
                other = models.setdefault(model, name)
                if other != name:
                    raise ValueError(f"workloads {other} and {name} both answer to {model!r}; a request could mean either")
        return self

    @property
    def front_pool(self) -> str | None:
        """Name of the pool without accelerator that carries the doors, if the environment has one."""
        return next((name for name, pool in self.pools.items() if not pool.holds_workloads), None)


class Environment(Model):
    """One environment: its pools, and values merged over the shared ones."""

    pools: dict[Name, Pool] = Field(min_length=1)
    gke: Gke | None = None
    workloads: dict[Name, Workload] = Field(default_factory=dict, description="Merged over the shared workloads.")
    jobs: Jobs | None = Field(None, description="Merged over the shared jobs section.")
    gateway: Gateway | None = Field(None, description="Merged over the shared gateway section.")


class PlatformFile(Model):
    """The platform file."""

    name: Name = Field("cotenant", description="Name of the platform; prefixes what is created for it.")
    workloads: dict[Name, Workload] = Field(min_length=1, description="What is served, by name.")
    jobs: Jobs = Field(default_factory=Jobs)
    gateway: Gateway = Field(default_factory=Gateway)
    environments: dict[Name, Environment] = Field(min_length=1, description="local, dev, staging, prod, …")
