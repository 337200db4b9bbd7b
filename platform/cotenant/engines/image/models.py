"""Where an image workload's pipeline comes from: the bundled one, a local folder, a hub id or an object store.

`locate` decides from the name alone and touches nothing but the local file system, so a builder can refuse a folder
that is not there before anything is stopped. `materialise` puts the pipeline onto this machine: the bundled one is
built once per machine, a hub id is downloaded into the hub's own cache, an object store's folder under the home
folder. What it makes appears whole or not at all, however many replicas start together. Only safetensors are ever
taken: a pickle runs its author's code.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cotenant.errors import EnvironmentFault

TINY = "tiny-inpaint"
#: Schemes of object stores that a pipeline's folder may lie in.
REMOTE_SCHEMES = ("s3://", "gs://")
INDEX = "model_index.json"
#: Files of a pipeline that are fetched from an object store: weights, configurations, tokenizers, licences.
_WANTED = (".safetensors", ".json", ".txt", ".model", ".jinja", ".md")
#: Changes when the bundled pipeline would come out different, so that an old one is not used.
_TINY_VERSION = "v1"
_CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Model:
    """What `image.model` means. `source` is a name, a folder, a hub id or a URI, by `kind`."""

    name: str
    kind: Literal["bundled", "folder", "hub", "remote"]
    source: str


def locate(name: str) -> Model:
    """What the platform file's `model` stands for. Raises EnvironmentFault for a folder without a usable pipeline."""
    if name == TINY:
        return Model(name, "bundled", name)
    if name.startswith(REMOTE_SCHEMES):
        return Model(name, "remote", name)
    if name.startswith(("/", "./", "../", "~")) or Path(name).is_dir():
        folder = Path(name).expanduser().resolve()
        require_pipeline(folder, name)
        return Model(name, "folder", str(folder))
    return Model(name, "hub", name)


def materialise(model: Model, home: Path) -> Path:
    """The folder on this machine that the pipeline is loaded from; made or fetched if it isn't there, which takes time.

    Raises:
        EnvironmentFault: it can't be had, or is no pipeline with safetensors weights.
    """
    if model.kind == "folder":
        return Path(model.source)
    if model.kind == "hub":
        return _download(model.source)
    if model.kind == "bundled":
        return once(home / "models" / f"{model.name}-{_TINY_VERSION}", _build_tiny)
    digest = hashlib.sha256(model.source.rstrip("/").encode()).hexdigest()[:16]
    name = model.source.rstrip("/").rsplit("/", 1)[-1]
    folder = once(home / "models" / f"{name}-{digest}", lambda work: _fetch(model.source, work))
    require_pipeline(folder, model.name)
    return folder


def index_of(folder: Path) -> dict[str, Any]:
    """A pipeline's `model_index.json`. Raises EnvironmentFault."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"{folder / INDEX} can't be read: {error}") from None
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise EnvironmentFault(
            f"{folder / INDEX} names no pipeline class of diffusers; code that comes with a model is not run"
        )
    return index


def require_pipeline(folder: Path, name: str) -> None:
    """Raises EnvironmentFault if `folder` is no diffusers pipeline with safetensors weights."""
    if not (folder / INDEX).is_file():
        have = "no such folder" if not folder.is_dir() else f"a folder without {INDEX}"
        raise EnvironmentFault(f"model {name} needs a diffusers folder at {folder}; it has {have}: give another path")
    index_of(folder)
    if not any(folder.glob("*/*.safetensors")):
        raise EnvironmentFault(
            f"model {name} needs weights as .safetensors; {folder} has none: save it with safe_serialization=True"
        )


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make` if it isn't there: beside it and renamed, by one process of all that ask."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(folder.name + ".lock")):
            if not folder.is_dir():
                work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
                try:
                    make(work)
                    work.chmod(0o755)
                    work.rename(folder)
                except BaseException:
                    shutil.rmtree(work, ignore_errors=True)
                    raise
    return folder


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build_tiny(work: Path) -> None:
    from cotenant.engines.image.tiny import build  # noqa: PLC0415 - heavy, and only the first start needs it

    build(work)


def _download(hub_id: str) -> Path:
    """The snapshot folder of a hub pipeline, from the hub or, without a network, from its cache."""
    from diffusers import DiffusionPipeline  # noqa: PLC0415 - heavy; the builder does without

    try:
        # It knows which of a repository's files the pipeline consists of; others hold the weights once more.
        return Path(DiffusionPipeline.download(hub_id, use_safetensors=True))
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise EnvironmentFault(
            f"model {hub_id} needs to be on the hub, as a diffusers pipeline with .safetensors, and allowed to this "
            f"machine (HF_TOKEN, HF_HUB_CACHE): {reason}"
        ) from error


def _fetch(uri: str, work: Path) -> None:
    """Copy a pipeline's folder from an object store into `work`."""
    from obstore.store import from_url  # noqa: PLC0415 - only object stores need it

    try:
        copy_store(from_url(uri.rstrip("/") + "/"), work)
    except EnvironmentFault:
        raise
    except Exception as error:
        raise EnvironmentFault(f"model {uri} can't be fetched: {type(error).__name__}: {str(error)[:300]}") from error


def copy_store(store: Any, work: Path) -> None:
    """Copy what a pipeline consists of out of an obstore store. Raises EnvironmentFault if nothing is there."""
    copied = 0
    for batch in store.list():
        for entry in batch:
            path = str(entry["path"])
            target = (work / path).resolve()
            if not path.endswith(_WANTED) or not target.is_relative_to(work.resolve()):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for part in store.get(path).stream(min_chunk_size=_CHUNK_BYTES):
                    file.write(part)
            copied += 1
    if not copied:
        raise EnvironmentFault("the object store has no pipeline's files at that prefix; give the folder's own URI")
