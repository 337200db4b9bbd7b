"""What is known of a workload's model on this machine, and from where more can be had.

Looked at in this order: what comes with the package, a local folder or file, the Hugging Face cache. Only where that
gives nothing and a `Hub` is given is the network asked. Nothing is written, downloaded or imported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import cotenant
from cotenant.config import Workload
from cotenant.gpu.fit import bundled
from cotenant.gpu.fit.folder import FactsMissing, Folder, LocalFolder
from cotenant.gpu.fit.image import ImageFacts
from cotenant.gpu.fit.llm import LlmFacts
from cotenant.gpu.fit.mockup import MockupFacts

Facts = LlmFacts | ImageFacts | MockupFacts
FactsT = TypeVar("FactsT", LlmFacts, ImageFacts)

_OBJECT_STORES = ("s3://", "gs://", "abfss://", "azure://")


class Hub(Protocol):
    """A place that has models by id: the edge to the network, and its twin."""

    def folder(self, model_id: str) -> Folder:
        """The repository of a model. Raises FactsMissing if it can't be reached or does not exist."""
        ...


class InMemoryHub:
    """The twin: repositories by id."""

    def __init__(self, folders: dict[str, Folder]) -> None:
        self._folders = folders

    def folder(self, model_id: str) -> Folder:
        if model_id not in self._folders:
            raise FactsMissing(f"the hub has no model {model_id!r}; check the id")
        return self._folders[model_id]


def is_path(model: str) -> bool:
    """Whether a model's name means a place on this machine."""
    return model.startswith(("/", "./", "../", "~")) or Path(model).exists()


def is_at_hand(workload: Workload) -> bool:
    """Whether a workload's model comes with the package or lies at a path, so that its facts don't depend on caches."""
    return all(model in bundled.LLMS or model in bundled.IMAGES or is_path(model) for model in workload.models)


def facts_of(workload: Workload, hub: Hub | None = None) -> Facts | None:
    """The facts of a workload's model; None if they are not on this machine and there is no hub to ask.

    Raises:
        FactsMissing: the model's files are damaged or not of its kind, or the hub has no such model.
    """
    if workload.mockup is not None:
        return templates(workload.mockup.templates)
    if workload.llm is not None:
        return llm_facts(workload.llm.model, hub)
    assert workload.image is not None
    return image_facts(workload.image.model, hub)


def llm_facts(model: str, hub: Hub | None = None) -> LlmFacts | None:
    """The facts of a language model by its name. Raises FactsMissing."""
    if (known := bundled.LLMS.get(model)) is not None:
        return known()
    if is_path(model) and Path(model).expanduser().is_file():
        file = Path(model).expanduser()
        return LlmFacts.of_gguf(LocalFolder(file.parent), file.name)
    return _read(model, hub, LlmFacts.read)


def image_facts(model: str, hub: Hub | None = None) -> ImageFacts | None:
    """The facts of a diffusion pipeline by its name. Raises FactsMissing."""
    if (known := bundled.IMAGES.get(model)) is not None:
        return known()
    return _read(model, hub, ImageFacts.read)


def templates(names: Sequence[str]) -> MockupFacts:
    """The facts of mockup templates: bundled names, or paths of GLB files. Raises FactsMissing."""
    folder = Path(cotenant.__file__).parent / "engines/mockup/templates"
    return MockupFacts.of_files(
        Path(name).expanduser() if name.endswith(".glb") else folder / f"{name}.glb" for name in names
    )


def _read(model: str, hub: Hub | None, read: Callable[[Folder], FactsT]) -> FactsT | None:
    if is_path(model):
        folder = Path(model).expanduser()
        if not folder.is_dir():
            raise FactsMissing(f"there is no folder {folder}; give the path of a model's folder, or a hub id")
        return read(LocalFolder(folder))
    if model.startswith(_OBJECT_STORES):
        return None
    if (cached := _cached(model)) is not None:
        return read(LocalFolder(cached, name=model))
    return None if hub is None else read(hub.folder(model))


def _cached(model_id: str) -> Path | None:
    """The newest snapshot of a hub model in the hub's own cache, if it has weights or at least a config.

    Layout: huggingface_hub, "Manage huggingface_hub cache-system".
    """
    cache = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub"
    base = Path(cache).expanduser() / f"models--{model_id.replace('/', '--')}"
    main = base / "refs/main"
    try:
        snapshot = base / "snapshots" / main.read_text().strip()
    except OSError:
        return None
    complete = (snapshot / "config.json").is_file() or (snapshot / "model_index.json").is_file()
    return snapshot if complete and _whole(snapshot) else None


def _whole(snapshot: Path) -> bool:
    """Whether every shard that an index names is there."""
    for index in snapshot.glob("*.safetensors.index.json"):
        try:
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            return False
        if not all((snapshot / shard).is_file() for shard in shards):
            return False
    return True
