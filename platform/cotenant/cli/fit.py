"""`cotenant fit`: what a model or a workload will take of a GPU, part by part, before anything runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cotenant.config import DEFAULT_ENVIRONMENT, DEFAULT_FILE, GpuBudget, Platform, Workload, load_platform
from cotenant.config.model import KINDS, ImageSpec, Kind, LlmSpec, MockupSpec
from cotenant.errors import PlanError
from cotenant.gpu.accelerators import ACCELERATORS, CPU, usable_gib
from cotenant.gpu.fit import Facts, FactsMissing, Fit, Hub, facts_of, fit_workload
from cotenant.gpu.fit.bundled import IMAGES, LLMS
from cotenant.gpu.fit.llm import LlmFacts, LlmLoad, need
from cotenant.gpu.fit.locate import is_path

#: What is shown where nobody says: the GPU that the examples run on.
DEFAULT_ACCELERATOR = "nvidia-l4"
_TEMPLATES = Path(__file__).parents[1] / "engines/mockup/templates"


@dataclass(frozen=True)
class Reach:
    """How far one GPU goes: replicas of the typical need, and for a language model how long and how many requests."""

    accelerator: str
    usable_gib: float
    need_gib: float
    least_gib: float
    replicas: int
    longest_context: int | None = None
    requests: int | None = None


@dataclass(frozen=True)
class Answer:
    """An estimate to show: the typical need, the least, the budget if one is declared, and how far GPUs go."""

    name: str
    kind: Kind
    model: str
    typical: Fit
    least: Fit
    declared_gib: float | None
    reach: tuple[Reach, ...]

    @property
    def enough(self) -> bool:
        return self.declared_gib is None or self.declared_gib >= self.least.total_gib


@click.command()
@click.argument("names", nargs=-1, metavar="[MODEL | WORKLOAD...]")
@click.option("-f", "--file", type=click.Path(path_type=Path), help="A platform file; estimates its workloads.")
@click.option("-e", "--env", "environment", help=f"Environment of the file.  [default: {DEFAULT_ENVIRONMENT}]")
@click.option("--kind", type=click.Choice(KINDS), help="What MODEL is; seen from its files where left out.")
@click.option("--context", type=click.IntRange(128, 10_000_000), help="Longest prompt plus answer, in tokens.")
@click.option("--concurrency", type=click.IntRange(1, 4096), help="Requests (pictures) at once.")
@click.option("--dtype", type=click.Choice(["auto", "bfloat16", "float16", "float32"]), help="Type of the weights.")
@click.option("--quantization", help="On load: a method of vLLM's, or 8bit or 4bit of a diffusion model.")
@click.option("--kv-dtype", help="Type of the KV cache, e.g. fp8.")
@click.option("--size", "size_px", type=click.IntRange(16, 8192), help="Longest side of a picture, in pixels.")
@click.option("--accelerator", help=f"Where the parts are shown for.  [default: {DEFAULT_ACCELERATOR}]")
@click.option("--json", "as_json", is_flag=True, help="Print the estimate as JSON.")
def fit(names: tuple[str, ...], file: Path | None, environment: str | None, as_json: bool, **asked: Any) -> None:
    """Estimate what a model takes of a GPU, part by part.

    MODEL is a bundled name, a folder, a GGUF file, a hub id or a mockup template. With -f or -e, or without MODEL,
    the workloads of a platform file are estimated instead, all of them or those named.
    """
    if file is not None or environment is not None or not names:
        set_anyway = [
            f"--{key.replace('_px', '').replace('_', '-')}" for key, value in asked.items() if value is not None
        ]
        set_anyway = [option for option in set_anyway if option != "--accelerator"]
        if set_anyway:
            raise click.UsageError(f"{', '.join(set_anyway)} goes with a MODEL; a file's workloads say it themselves")
        platform = load_platform(file or DEFAULT_FILE, environment or DEFAULT_ENVIRONMENT)
        answers = of_platform(platform, names, asked["accelerator"], _hub())
    elif len(names) > 1:
        raise click.UsageError(f"takes one MODEL, got {len(names)}; workloads are named together with -f")
    else:
        answers = [of_model(names[0], hub=_hub(), **asked)]
    if as_json:
        click.echo(json.dumps([as_data(answer) for answer in answers], indent=2))
    else:
        from cotenant.cli.fit_view import show  # noqa: PLC0415 - `--json` and errors do without rich

        show(answers)
    if not all(answer.enough for answer in answers):
        click.get_current_context().exit(PlanError.exit_code)


def _hub() -> Hub:
    from cotenant.gpu.fit.hub import HttpsHub  # noqa: PLC0415 - only what is not on this machine is asked for

    return HttpsHub()


def of_model(
    model: str,
    *,
    hub: Hub | None,
    kind: Kind | None = None,
    context: int | None = None,
    concurrency: int | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    kv_dtype: str | None = None,
    size_px: int | None = None,
    accelerator: str | None = None,
) -> Answer:
    """The estimate of one model. Raises FactsMissing, and click.UsageError for options that its kind lacks."""
    kind = kind or kind_of(model, hub)
    given = {"--context": context, "--kv-dtype": kv_dtype, "--size": size_px, "--quantization": quantization}
    given["--dtype"] = dtype
    lacks = {
        "llm": ("--size",),
        "image": ("--context", "--kv-dtype"),
        "mockup": tuple(o for o in given if o != "--size"),
    }
    for option in lacks[kind]:
        if given[option] is not None:
            raise click.UsageError(f"{option} means nothing for {'an' if kind != 'mockup' else 'a'} {kind} model")
    budget = GpuBudget(vram_gib="auto")
    common: dict[str, Any] = {"gpu": budget, "concurrency": concurrency}
    if kind == "llm":
        engine = {"quantization": quantization, "kv_cache_dtype": kv_dtype}
        spec: dict[str, Any] = {"model": model, "dtype": dtype, "context_tokens": context}
        kept = {key: value for key, value in spec.items() if value is not None}
        extra = {key: value for key, value in engine.items() if value is not None}
        workload = Workload(llm=LlmSpec(**kept, engine=extra), **common)
    elif kind == "image":
        if quantization not in (None, "none", "8bit", "4bit"):
            raise click.UsageError(
                f"--quantization of a diffusion model takes none, 8bit or 4bit; got {quantization!r}"
            )
        image: dict[str, Any] = {"model": model, "dtype": dtype, "quantization": quantization, "max_size_px": size_px}
        image["max_batch"] = concurrency
        workload = Workload(image=ImageSpec(**{key: v for key, v in image.items() if v is not None}), **common)
    else:
        mockup: dict[str, Any] = {"templates": [model]} | ({"max_size_px": size_px} if size_px else {})
        workload = Workload(mockup=MockupSpec(**mockup), **common)
    facts = facts_of(workload, hub)
    if facts is None:
        raise FactsMissing(f"sizes of {model} can't be read from where it lies; name a local folder or a hub id")
    return _answer(model, workload, facts, accelerator or DEFAULT_ACCELERATOR, _catalogue())


def kind_of(model: str, hub: Hub | None) -> Kind:
    """What a model is: by its name if that is bundled, else by its files. Raises FactsMissing."""
    if model in LLMS:
        return "llm"
    if model in IMAGES:
        return "image"
    if model.endswith(".glb") or ((_TEMPLATES / f"{model}.glb").is_file() and not is_path(model)):
        return "mockup"
    if is_path(model):
        return "image" if (Path(model).expanduser() / "model_index.json").is_file() else "llm"
    # The hub's cache first, so that nothing is asked of the network that is known here.
    for kind, workload in _guesses(model).items():
        try:
            if facts_of(workload) is not None:
                return kind
        except FactsMissing:
            continue
    return "image" if hub is not None and "model_index.json" in hub.folder(model).files() else "llm"


def _guesses(model: str) -> dict[Kind, Workload]:
    budget = GpuBudget(vram_gib="auto")
    return {
        "image": Workload(image=ImageSpec(model=model), gpu=budget),
        "llm": Workload(llm=LlmSpec(model=model), gpu=budget),
    }


def of_platform(platform: Platform, names: tuple[str, ...], accelerator: str | None, hub: Hub) -> list[Answer]:
    """The estimates of a platform's workloads, of all or of those named, on the accelerators of their pools.

    Raises FactsMissing, and click.UsageError for a name that is no workload's.
    """
    for name in names:
        if name not in platform.workloads:
            raise click.UsageError(
                f"{name!r} is no workload of {platform.name}; it has {', '.join(platform.workloads)}"
            )
    answers = []
    for name, workload in platform.workloads.items():
        if names and name not in names:
            continue
        facts = facts_of(workload, hub)
        if facts is None:
            raise FactsMissing(f"{name}: sizes of {workload.models[0]} can't be read from where it lies")
        pools = {
            pool: usable_gib(pool, platform.pools[pool])
            for pool in workload.pools or platform.pools
            if platform.pools[pool].holds_workloads
        }
        gpus = {str(platform.pools[pool].accelerator): usable for pool, usable in pools.items()}
        where = accelerator or max(
            gpus, key=lambda gpu: fit_workload(name, workload, gpu, facts, least=True).total_bytes
        )
        answers.append(_answer(name, workload, facts, where, gpus))
    return answers


def _catalogue() -> dict[str, float]:
    return {name: listed.usable_gib for name, listed in ACCELERATORS.items()}


def _answer(name: str, workload: Workload, facts: Facts, accelerator: str, gpus: dict[str, float]) -> Answer:
    if accelerator != CPU and accelerator not in ACCELERATORS and accelerator not in gpus:
        raise click.UsageError(f"--accelerator: {accelerator!r} is not known; {', '.join([*ACCELERATORS, CPU])} are")
    declared = None if isinstance(workload.gpu.vram_gib, str) else workload.gpu.vram_gib
    typical = fit_workload(name, workload, accelerator, facts)
    return Answer(
        name=name,
        kind=workload.kind,
        model=workload.models[0]
        if workload.models
        else ", ".join(workload.mockup.templates if workload.mockup else ()),
        typical=typical,
        least=fit_workload(name, workload, accelerator, facts, least=True),
        declared_gib=declared,
        reach=tuple(_reach(name, workload, facts, gpu, usable) for gpu, usable in gpus.items()),
    )


def _reach(name: str, workload: Workload, facts: Facts, accelerator: str, usable: float) -> Reach:
    typical = fit_workload(name, workload, accelerator, facts)
    least = fit_workload(name, workload, accelerator, facts, least=True)
    budget = typical.budget_gib if isinstance(workload.gpu.vram_gib, str) else workload.gpu.vram_gib
    longest = requests = None
    if workload.llm is not None and isinstance(facts, LlmFacts):
        load = LlmLoad.of(workload.llm, workload.slots)
        llm = need(facts, load, accelerator)
        longest, requests = llm.longest_context_in(usable), llm.requests_in(usable)
    return Reach(
        accelerator=accelerator,
        usable_gib=usable,
        need_gib=budget,
        least_gib=least.budget_gib,
        replicas=int(usable / budget + 1e-6),
        longest_context=longest,
        requests=requests,
    )


def as_data(answer: Answer) -> dict[str, Any]:
    """An estimate as plain data; sizes in bytes and GiB."""
    return {
        "name": answer.name,
        "kind": answer.kind,
        "model": answer.model,
        "accelerator": answer.typical.accelerator,
        "total_gib": round(answer.typical.total_gib, 3),
        "budget_gib": answer.typical.budget_gib,
        "least_gib": round(answer.least.total_gib, 3),
        "asleep_gib": round(answer.typical.asleep_gib, 3),
        "declared_gib": answer.declared_gib,
        "enough": answer.enough,
        "parts": [
            {
                "name": part.name,
                "bytes": part.bytes,
                "gib": round(part.gib, 3),
                "formula": part.formula,
                "source": part.source,
                "asleep": part.asleep,
            }
            for part in answer.typical.parts
        ],
        "accelerators": [
            {
                "name": each.accelerator,
                "usable_gib": each.usable_gib,
                "budget_gib": each.need_gib,
                "replicas": each.replicas,
                "serves": each.least_gib <= each.usable_gib,
                "longest_context": each.longest_context,
                "requests_at_once": each.requests,
            }
            for each in answer.reach
        ],
        "notes": list(answer.typical.notes),
    }
