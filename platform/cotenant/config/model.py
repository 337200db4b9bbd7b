"""The platform file as typed, frozen models: the one description everything else is derived from.

Always true of a value that got this far: keys are known, units are as named, ranges are possible, each
workload has exactly one kind, names don't clash. Whether it *fits* is the plan's question (`cotenant.gpu.plan`),
not this one's. Types are strict: `"4"` is no number and `yes` no count.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from typing_extensions import Self

from cotenant.config.base import Misplaced, Model, Name, Names
from cotenant.config.document import Origin
from cotenant.config.gke import Gke
from cotenant.config.spill import Spill

Kind = Literal["llm", "mockup", "image"]
KINDS: tuple[Kind, ...] = ("llm", "mockup", "image")

#: How warm a workload is kept: always resident; asleep (off the GPU, quick to wake) when the memory is wanted or
#: after `idle_s`; or loaded only while there is something to do.
Residency = Literal["always", "sleep", "on-demand"]

#: Names of the Serve applications that are not workloads.
RESERVED_NAMES = frozenset({"gateway", "ingress"})

_QUANTITY = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?)?(b?)\s*$", re.IGNORECASE)
_BYTES = {"k": 1e3, "ki": 2**10, "m": 1e6, "mi": 2**20, "g": 1e9, "gi": 2**30, "t": 1e12, "ti": 2**40}


def _gib_number(value: Any) -> Any:
    """Refuse `"5GB"` for a key that says GiB, and tell the number that was meant."""
    if not isinstance(value, str):
        return value
    match = _QUANTITY.match(value)
    if match is None:
        raise ValueError(f"takes a number of GiB; got {value!r}")
    number, unit, byte = float(match[1]), (match[2] or "").lower(), match[3]
    gib = number * _BYTES[unit] / 2**30 if unit else number / 2**30 if byte else number
    raise ValueError(f"takes a number of GiB, without unit or quotes; for {value!r} write {gib:.4g}")


#: The bounds come first, so that the JSON schema has them too.
Gib = Annotated[float, Field(gt=0, le=65536), BeforeValidator(_gib_number)]


def _auto_or_number(value: Any, number: ValidatorFunctionWrapHandler) -> Any:
    return value if value == "auto" else number(value)


if TYPE_CHECKING:
    Budget = float | Literal["auto"]
else:
    #: A union would report a wrong value once for each of its members.
    Budget = Annotated[
        Gib,
        WrapValidator(_auto_or_number),
        WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 65536}, {"const": "auto"}]}),
    ]


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
    sleep_level: Literal[1, 2] = Field(
        1,
        description="Asleep on a GPU: 1 keeps the weights in host memory, 2 drops them and reads them again on waking.",
    )
    engine: dict[str, Any] = Field(
        default_factory=dict,
        description="Further vLLM engine arguments, passed on as they are (e.g. quantization, enable_prefix_caching).",
    )


class MockupSpec(Model):
    """A 3D-mockup renderer: Mitsuba, warm scenes, artwork swapped per request."""

    templates: Names = Field(
        ("mug", "poster"),
        min_length=1,
        description="Bundled template names, or paths of GLB files with a material named artwork; a request names the "
        "file's stem, and goes to the first workload that has it.",
    )
    max_size_px: int = Field(2048, ge=16, le=8192, description="Longest side of a render, in pixels.")
    max_samples: int = Field(256, ge=1, le=4096, description="Most samples per pixel a request may ask for.")
    variant: Literal["auto", "cuda", "llvm", "scalar"] = Field(
        "auto", description="Mitsuba back end; auto takes the fastest one that a probe found working."
    )

    @model_validator(mode="after")
    def _templates_are_distinct(self) -> Self:
        stems = [template.rsplit("/", 1)[-1].removesuffix(".glb") for template in self.templates]
        for stem in stems:
            if stems.count(stem) > 1:
                raise ValueError(f"templates holds {stem!r} twice; a request could mean either: drop or rename one")
        return self


class ImageSpec(Model):
    """A diffusion model served by diffusers behind the OpenAI image routes."""

    model: str = Field(
        min_length=1,
        description="tiny-inpaint (bundled, random weights: its pictures are noise), a local diffusers folder, a hub "
        "id (e.g. black-forest-labs/FLUX.2-klein-4B), or an object-store URI (s3://, gs://).",
    )
    steps: int | None = Field(None, ge=1, le=500, description="Denoising steps (default: what suits the pipeline).")
    guidance: float | None = Field(None, ge=0, le=50, description="Guidance scale (default: what suits the pipeline).")
    size_px: int | None = Field(
        None, ge=16, le=4096, description="Side of a picture whose request names no size (default: the pipeline's own)."
    )
    max_size_px: int = Field(1024, ge=16, le=4096, description="Longest side of a picture, in pixels.")
    max_batch: int = Field(4, ge=1, le=64, description="Pictures of equal shape that are denoised together.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Weight type; auto is bfloat16 on a GPU and float32 on a CPU."
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none", description="Quantise the denoiser and text encoders on load (bitsandbytes; needs a GPU)."
    )
    offload: Literal["auto", "none", "model", "sequential"] = Field(
        "auto", description="Keep parts in host memory between their turns; auto does so if the budget needs it."
    )


class GpuBudget(Model):
    """What a replica may hold of one GPU."""

    vram_gib: Budget = Field(
        description="VRAM budget of one replica in GiB, which becomes its share of the GPU (num_gpus); auto takes the "
        "estimate of `cotenant fit`."
    )
    asleep_gib: Gib | None = Field(
        None, description="What a replica still holds while asleep, in GiB (default: by its engine)."
    )

    @model_validator(mode="after")
    def _asleep_is_less(self) -> Self:
        if self.asleep_gib is not None and self.vram_gib != "auto" and self.asleep_gib > self.gib:
            raise ValueError(f"has asleep_gib {self.asleep_gib:g} above vram_gib {self.gib:g}; lower asleep_gib")
        return self

    @property
    def gib(self) -> float:
        """The budget as a number. Only for a platform whose `auto` budgets were filled in."""
        if isinstance(self.vram_gib, str):
            raise ValueError("the budget is auto; fill it in with cotenant.gpu.fit first")
        return self.vram_gib


#: Most replicas or nodes there can be.
_MOST = 10_000
#: Requests that one replica works on at once, where the file doesn't say.
_SLOTS: dict[Kind, int] = {"llm": 32, "mockup": 2, "image": 4}
#: Seconds that a call should wait at the most, where the file doesn't say.
_TARGET_WAIT_S: dict[Kind, float] = {"llm": 2.0, "mockup": 5.0, "image": 15.0}


class _Range(Model):
    """A lowest and a highest count. Where a file gives `min` alone, `max` is as high."""

    min: int
    max: int

    @model_validator(mode="before")
    @classmethod
    def _max_follows_min(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("min"), int) and "max" not in data:
            return {**data, "max": min(max(1, data["min"]), _MOST)}
        return data

    @model_validator(mode="after")
    def _range_is_possible(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"has min {self.min} above max {self.max}; raise max or lower min")
        return self


class Replicas(_Range):
    """How many replicas run: never under min, never over max."""

    min: int = Field(1, ge=0, le=_MOST, description="Replicas that always run.")
    max: int = Field(1, ge=1, le=_MOST, description="Replicas at the most.")
    per_node: int | None = Field(
        None, ge=1, le=100, description="Replicas on one node at the most; 1 means that losing a node loses only one."
    )


class Workload(Model):
    """A named thing served: one Serve application. Exactly one kind (llm, mockup, image) must be given."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [kind]} for kind in KINDS]})

    llm: LlmSpec | None = Field(None, description="Make it a language model.")
    mockup: MockupSpec | None = Field(None, description="Make it a 3D-mockup renderer; {} takes the defaults.")
    image: ImageSpec | None = Field(None, description="Make it a diffusion model.")
    gpu: GpuBudget = Field(description="The budget of one replica, e.g. gpu: {vram_gib: 5}.")
    residency: Residency = Field(
        "always",
        description="always: never gives its memory back. sleep: books what it holds asleep, and wakes for a request. "
        "on-demand: nothing is loaded until a request comes.",
    )
    idle_s: float = Field(
        300, ge=1, le=86_400, description="A replica that may sleep does so after this long without a request."
    )
    cpus: float = Field(1, gt=0, le=1024, description="CPU cores a replica books on its node.")
    concurrency: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Slots: interactive requests a replica works on at once, and jobs in what they leave (default: "
        "llm 32, mockup 2, image 4).",
    )
    queue: int = Field(256, ge=1, le=100_000, description="Requests that may wait at one gateway before it says 429.")
    deadline_s: float = Field(300, gt=0, le=86_400, description="A request is cancelled and answered 504 after this.")
    replicas: Replicas = Field(default_factory=Replicas)
    target_wait_s: float | None = Field(
        None,
        gt=0,
        le=86_400,
        description="Replicas are added so that a request waits no longer than this before it is worked on (default: "
        "llm 2, mockup 5, image 15). A job with a deadline may wait for half of what is left until then.",
    )
    pools: Names = Field((), description="GPU pools it may run in (default: any it fits, cheapest first).")
    spill: Spill | None = Field(None, description="Where requests go that would wait too long here (default: nowhere).")

    @model_validator(mode="after")
    def _exactly_one_kind(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise ValueError(f"is {' and '.join(given)} at once; keep one, or make two workloads")
        if not given:
            raise ValueError(f"has no kind; say what it serves with one of {', '.join(KINDS)} (e.g. mockup: {{}})")
        return self

    @model_validator(mode="after")
    def _spilled_model_is_one(self) -> Self:
        if self.mockup is not None and self.spill is not None and self.spill.model is not None:
            raise ValueError("is a mockup and names spill.model; its requests name templates, so drop spill.model")
        return self

    @property
    def kind(self) -> Kind:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def spec(self) -> LlmSpec | MockupSpec | ImageSpec:
        """What its kind is told: the one of `llm`, `mockup`, `image` that is given."""
        spec = self.llm or self.mockup or self.image
        assert spec is not None
        return spec

    @property
    def slots(self) -> int:
        """Interactive requests that one replica works on at once. Batch jobs get of these slots what is left."""
        return self.concurrency or _SLOTS[self.kind]

    @property
    def wait_s(self) -> float:
        """How long a request should wait at the most before it is worked on."""
        return self.target_wait_s or _TARGET_WAIT_S[self.kind]

    @property
    def spills_after_s(self) -> float:
        """How long a request would have to wait to be sent elsewhere, where there is an elsewhere."""
        spill = self.spill
        return self.wait_s if spill is None or spill.after_wait_s is None else spill.after_wait_s

    @property
    def models(self) -> tuple[str, ...]:
        """Names a request may ask for in `model`, the public one first; empty for mockups."""
        spec = self.llm or self.image
        return (spec.model,) if spec is not None else ()


class Nodes(_Range):
    """How many nodes a pool has: never under min, never over max."""

    min: int = Field(0, ge=0, le=_MOST, description="Nodes that always run.")
    max: int = Field(1, ge=1, le=_MOST, description="Nodes at the most.")
    spare: int = Field(0, ge=0, le=100, description="Nodes kept ready beyond those in use, within max.")

    @model_validator(mode="after")
    def _spare_is_within_max(self) -> Self:
        if self.spare > self.max:
            raise ValueError(f"has spare {self.spare} above max {self.max}; raise max or lower spare")
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
    mig: str | None = Field(
        None,
        pattern=r"^[0-9]+g\.[0-9]+gb$",
        description="MIG profile, e.g. 1g.10gb: every GPU is cut into such slices, and each slice is a GPU of its own.",
    )
    mps: bool = Field(
        False,
        description="On Kubernetes, start CUDA's MPS daemon beside Ray on each node, so that the driver itself refuses "
        "what goes past a budget.",
    )
    nodes: Nodes = Field(default_factory=Nodes)
    spot: bool = Field(False, description="Take spot capacity: cheaper, and may be reclaimed.")
    usd_per_h: float | None = Field(
        None, ge=0, description="Price of one node per hour; default from the dated price table."
    )

    @model_validator(mode="after")
    def _memory_goes_with_accelerator(self) -> Self:
        if self.accelerator == "cpu" and self.vram_gib is None:
            raise ValueError("has the accelerator cpu and needs vram_gib: how much memory its virtual GPU has")
        if self.accelerator is None and self.vram_gib is not None:
            raise ValueError("gives vram_gib without an accelerator; name the accelerator or drop vram_gib")
        return self

    @property
    def holds_workloads(self) -> bool:
        return self.accelerator is not None


class Jobs(Model):
    """Where batch jobs come from and where their results go."""

    project: str = Field(
        "cotenant",
        description="Google Cloud project of the topics; where the environment has gke, that project is the default.",
    )
    topic: str = Field("jobs", description="Topic that jobs are published to.")
    subscription: str = Field("jobs-cotenant", description="Subscription the ingress pulls from.")
    results: str = Field("results", description="Topic that result messages are published to.")
    dead_letter: str = Field("dead", description="Topic for messages that can never succeed, with the reason.")
    filter: str | None = Field(
        None,
        description="Pub/Sub filter of the main subscription, for a topic that others use too; fixed at its creation.",
    )
    ordering: bool = Field(
        False, description="Messages with an ordering key are delivered in their order; fixed at creation."
    )
    exactly_once: bool = Field(
        False, description="Let Pub/Sub deliver no message again while it is leased; slower, and not needed."
    )
    retention_d: int = Field(7, ge=1, le=31, description="Days that a message waits for the ingress at the most.")
    max_attempts: int = Field(5, ge=1, le=100, description="Failed attempts at one job before it is dead-lettered.")
    max_job_s: int = Field(
        3600, ge=1, le=86_400, description="Longest that one job is worked on; its message lease is extended so long."
    )
    store: str = Field(
        "./results",
        description="Where result objects go: a folder, gs://bucket/prefix, s3://bucket/prefix or memory://.",
    )
    lease_s: int = Field(60, ge=10, le=600, description="Message lease (ack deadline); extended while work runs.")
    drain_s: int = Field(
        60,
        ge=1,
        le=86_400,
        description="An ingress that goes may finish its jobs for so long; the rest is handed back.",
    )
    ingresses: int = Field(1, ge=0, le=100, description="Ingress replicas; 0 serves no jobs.")
    look_ahead: int = Field(
        2, ge=0, le=1000, description="Jobs of each workload held beyond its free slots, to hide the pull."
    )
    webhooks_env: str = Field(
        "COTENANT_WEBHOOK_SECRETS",
        description="Environment variable with the secrets that sign webhooks: tenant:whsec_…, comma-separated.",
    )


class Gateway(Model):
    """The HTTP door."""

    keys_env: str | None = Field(
        "COTENANT_API_KEYS", description="Environment variable with API keys: tenant:key, comma-separated."
    )
    keys_file: str | None = Field(None, description="File with one tenant:key a line.")
    host: str = Field("127.0.0.1", description="Address the HTTP door listens on.")
    port: int = Field(8000, ge=1, le=65535, description="Port the HTTP door listens on.")
    replicas: int = Field(1, ge=1, le=1000, description="Gateway replicas.")
    open_metrics: bool = Field(
        False,
        description="Serve /metrics without a key, for a collector that has none. On GKE it is so: only the namespace "
        "and Google's collector reach it there.",
    )
    max_body_mib: float = Field(32, gt=0, le=1024, description="Largest request body; artwork itself is capped at 20.")


class Platform(Model):
    """One environment's platform: the file with that environment's values merged over the shared ones."""

    name: Name = Field("cotenant", description="Name of the platform; prefixes what is created for it.")
    environment: str
    workloads: dict[Name, Workload] = Field(min_length=1)
    jobs: Jobs = Field(default_factory=Jobs)
    gateway: Gateway = Field(default_factory=Gateway)
    pools: dict[Name, Pool] = Field(min_length=1)
    gke: Gke | None = None
    _origin: Origin | None = PrivateAttr(None)

    def read_from(self, origin: Origin) -> Self:
        """Remember the file, so that who finds something wrong later can name the line."""
        self._origin = origin
        return self

    def wrong(self, message: str, *path: str) -> str:
        """`message` about the value at `path`, led by its file and line where the platform came from a file."""
        return message if self._origin is None else str(self._origin.problem(path, message))

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        for name, workload in self.workloads.items():
            if name in RESERVED_NAMES:
                raise Misplaced(f"{name!r} is a front door's name; call the workload something else", "workloads", name)
            for pool in workload.pools:
                if pool not in self.pools:
                    have = ", ".join(self.pools)
                    raise Misplaced(
                        f"names pool {pool!r}, which environment {self.environment} lacks; it has {have}",
                        "workloads", name, "pools",
                    )  # fmt: skip
                if not self.pools[pool].holds_workloads:
                    raise Misplaced(
                        f"names pool {pool!r}, which has no accelerator; only the front doors run there",
                        "workloads", name, "pools",
                    )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _pools_suffice(self) -> Self:
        front = [name for name, pool in self.pools.items() if not pool.holds_workloads]
        if len(front) == len(self.pools):
            raise Misplaced("have no accelerator, so no workload can run; give one of them one (cpu will do)", "pools")
        if len(front) > 1:
            both = " and ".join(front)
            raise Misplaced(f"{both} have no accelerator; the front doors take one such pool, drop the others", "pools")
        return self

    @model_validator(mode="after")
    def _quantization_has_a_gpu(self) -> Self:
        for name, workload in self.workloads.items():
            if workload.image is None or workload.image.quantization == "none":
                continue
            pools = workload.pools or [pool for pool, spec in self.pools.items() if spec.holds_workloads]
            if all(self.pools[pool].accelerator == "cpu" for pool in pools):
                raise Misplaced(
                    f"is {workload.image.quantization}, which needs a GPU, and the workload may only run in "
                    f"{', '.join(pools)} (cpu); set quantization: none there",
                    "workloads", name, "image", "quantization",
                )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _models_are_distinct(self) -> Self:
        owners: dict[str, str] = {}
        for name, workload in self.workloads.items():
            for model in (name, *workload.models):
                owner = owners.setdefault(model, name)
                if owner != name:
                    raise Misplaced(
                        f"answers to {model!r} and so does {owner}; a request could mean either: rename the workload "
                        "or give one of them another model",
                        "workloads", name,
                    )  # fmt: skip
        return self

    @property
    def front_pool(self) -> str | None:
        """Name of the pool without accelerator that carries the doors, if the environment has one."""
        return next((name for name, pool in self.pools.items() if not pool.holds_workloads), None)


class Environment(Model):
    """One environment: its pools, and values merged over the shared ones."""

    pools: dict[Name, Pool] = Field(min_length=1, description="Pools of identical nodes, by name.")
    gke: Gke | None = Field(None, description="Where on Google Cloud it lives.")
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
