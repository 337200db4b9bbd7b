"""Facts from files: safetensors and GGUF headers, folders, caches. Nothing is believed before its size is known."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.config import GpuBudget, LlmSpec, MockupSpec, Workload
from cotenant.config.model import ImageSpec
from cotenant.gpu.fit import gguf, tensors
from cotenant.gpu.fit.bundled import IMAGES, LLMS
from cotenant.gpu.fit.folder import FactsMissing, InMemoryFolder, LocalFolder, read_json
from cotenant.gpu.fit.image import ImageFacts
from cotenant.gpu.fit.llm import LlmFacts
from cotenant.gpu.fit.locate import InMemoryHub, facts_of, image_facts, is_at_hand, llm_facts, templates
from cotenant.gpu.fit.mockup import MockupFacts

pytestmark = pytest.mark.unit

CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 10, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 16, "tie_word_embeddings": True, "torch_dtype": "float16",
}  # fmt: skip


def safetensors(shapes: Mapping[str, tuple[str, list[int]]], *, extra: bytes = b"") -> bytes:
    """A safetensors file without its tensors' bytes, which nobody reads."""
    header = {name: {"dtype": kind, "shape": shape, "data_offsets": [0, 0]} for name, (kind, shape) in shapes.items()}
    data = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return struct.pack("<Q", len(data)) + data + extra


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_file(
    keys: Mapping[str, Any], parts: Mapping[str, tuple[list[int], int]], *, version: int = 3, tokens: int = 0
) -> bytes:
    out = [b"GGUF", struct.pack("<IQQ", version, len(parts), len(keys) + (2 if tokens else 0))]
    for name, value in keys.items():
        if isinstance(value, str):
            out.append(text(name) + struct.pack("<I", 8) + text(value))
        else:
            out.append(text(name) + struct.pack("<II", 4, value))
    if tokens:
        out.append(text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, tokens) + text("word") * tokens)
        out.append(text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, tokens) + bytes(4 * tokens))
    for name, (sides, kind) in parts.items():
        out.append(text(name) + struct.pack(f"<I{len(sides)}Q", len(sides), *sides) + struct.pack("<IQ", kind, 0))
    return b"".join(out)


LLAMA_KEYS = {
    "general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": 64,
    "llama.feed_forward_length": 128, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
    "llama.context_length": 512,
}  # fmt: skip


def test_headers_tell_matrices_tables_and_vectors_apart() -> None:
    file = safetensors(
        {
            "model.embed_tokens.weight": ("BF16", [10, 8]),
            "lm_head.weight": ("BF16", [10, 8]),
            "model.layers.0.mlp.up_proj.weight": ("BF16", [16, 8]),
            "model.norm.weight": ("F32", [8]),
        }
    )
    folder = InMemoryFolder("m", {"model.safetensors": file})
    found = tensors.of_safetensors(folder, ["model.safetensors"])
    assert (found.matrices, found.tables, found.vectors) == ({"BF16": 128}, {"BF16": 160}, {"F32": 8})
    assert found.stored_bytes == 2 * 288 + 32
    assert found.values == 296
    assert found.largest == 128
    tied = tensors.of_safetensors(folder, ["model.safetensors"], tied=True)
    assert tied.tables == {"BF16": 80}, "a head that is the embedding once more is loaded once"


def test_of_many_shards_the_first_headers_stand_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MOST_HEADERS", 2)
    shards = {
        f"model-{n}.safetensors": safetensors({f"layers.{n}.w": ("F16", [4, 4])}, extra=bytes(32)) for n in range(4)
    }
    found = tensors.of_safetensors(InMemoryFolder("m", shards), shards)
    assert found.values == 4 * 16
    assert "first 2 of 4" in found.source


def test_a_tensor_in_two_shards_counts_once() -> None:
    file = safetensors({"w": ("F16", [4, 4])})
    found = tensors.of_safetensors(
        InMemoryFolder("m", {"a.safetensors": file, "b.safetensors": file}), ["a.safetensors", "b.safetensors"]
    )
    assert found.values == 16


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x01\0\0", id="cut in the length"),
        pytest.param(struct.pack("<Q", 1 << 40) + b"{}", id="a header of a terabyte"),
        pytest.param(struct.pack("<Q", 2) + b"{]", id="no JSON"),
        pytest.param(struct.pack("<Q", 2) + b"[]", id="no object"),
        pytest.param(struct.pack("<Q", 8) + b'{"w": 1}', id="no tensor"),
        pytest.param(safetensors({"w": ("F7", [2])}), id="an unknown type"),
        pytest.param(safetensors({"w": ("F16", [-2, 4])})[:-3], id="cut in the header"),
    ],
)
def test_a_damaged_safetensors_file_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(FactsMissing, match=r"model\.safetensors of m is no whole safetensors file.*fetch it again"):
        tensors.of_safetensors(InMemoryFolder("m", {"model.safetensors": data}), ["model.safetensors"])


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader_of_safetensors(data: bytes) -> None:
    folder = InMemoryFolder("m", {"x.safetensors": struct.pack("<Q", len(data)) + data})
    try:
        assert tensors.of_safetensors(folder, ["x.safetensors"]).values >= 0
    except FactsMissing as error:
        assert "x.safetensors" in str(error)


def test_a_gguf_head_tells_the_model_and_its_size() -> None:
    parts = {"token_embd.weight": ([64, 100], 12), "blk.0.ffn_up.weight": ([64, 128], 8), "norm": ([64], 0)}
    # The K types have blocks of 256 values.
    parts["token_embd.weight"] = ([256, 100], 12)
    head = gguf.read(InMemoryFolder("g", {"m.gguf": gguf_file(LLAMA_KEYS, parts, tokens=100)}), "m.gguf")
    assert head.stored_bytes == 100 * 144 + 64 * 128 // 32 * 34 + 64 * 4
    assert head.values == 25_600 + 8_192 + 64
    config = gguf.as_config(head)
    assert config["vocab_size"] == 100
    assert config["num_key_value_heads"] == 2
    assert config["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(b"GGML1234", "does not begin with GGUF", id="another format"),
        pytest.param(gguf_file({}, {}, version=1), "its version is 1", id="an old version"),
        pytest.param(gguf_file(LLAMA_KEYS, {})[:40], "ends too early", id="cut"),
        pytest.param(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "it counts", id="too many tensors"),
        pytest.param(gguf_file({}, {"w": ([4], 99)}), "unknown type 99", id="an unknown tensor type"),
        pytest.param(gguf_file({}, {"w": ([1] * 9, 0)}), "has 9 sides", id="too many sides"),
        pytest.param(
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 77), "unknown type 77", id="a value"
        ),
        pytest.param(
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 1), "array", id="an array"
        ),
    ],
)
def test_a_damaged_gguf_file_is_refused_by_name(data: bytes, why: str) -> None:
    with pytest.raises(FactsMissing, match=f"m.gguf of g is no whole GGUF file: .*{why}"):
        gguf.read(InMemoryFolder("g", {"m.gguf": data}), "m.gguf")


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader_of_gguf(data: bytes) -> None:
    folder = InMemoryFolder("g", {"m.gguf": b"GGUF" + struct.pack("<I", 3) + data})
    try:
        assert gguf.read(folder, "m.gguf").stored_bytes >= 0
    except FactsMissing as error:
        assert "m.gguf" in str(error)


def test_a_head_longer_than_any_model_needs_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "LONGEST_HEAD", 4096)
    monkeypatch.setattr(gguf, "_PIECE", 512)
    for data in (
        gguf_file({}, {}, tokens=2000),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 12, 4000) + bytes(32000),
    ):
        with pytest.raises(FactsMissing, match=r"more than|counts"):
            gguf.read(InMemoryFolder("g", {"m.gguf": data}), "m.gguf")


def test_a_model_folder_gives_config_and_headers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(safetensors({"w": ("F16", [4, 4])}))
    (tmp_path / "consolidated.safetensors").write_bytes(b"the same weights once more")
    (tmp_path / "pytorch_model.bin").write_bytes(b"and again")
    facts = LlmFacts.of_folder(tmp_path)
    assert facts.decoder.dtype == "float16"
    assert facts.tensors is not None
    assert facts.tensors.values == 16


def test_a_pickle_is_never_opened_and_a_bare_config_is_counted() -> None:
    config = {"config.json": json.dumps(CONFIG).encode()}
    pickled = LlmFacts.read(
        InMemoryFolder("m", {**config, "pytorch_model.bin": bytes(100), "training_args.bin": bytes(9)})
    )
    assert pickled.tensors is not None
    assert pickled.tensors.stored_bytes == 100
    assert LlmFacts.read(InMemoryFolder("m", config)).tensors is None


def test_a_folder_with_one_gguf_is_that_and_with_two_says_so() -> None:
    file = gguf_file(LLAMA_KEYS, {"w": ([32], 2)}, tokens=5)
    assert LlmFacts.read(InMemoryFolder("m", {"a.gguf": file})).decoder.hidden == 64
    with pytest.raises(FactsMissing, match="2 GGUF files: name one of them"):
        LlmFacts.read(InMemoryFolder("m", {"a.gguf": file, "b.gguf": file}))
    with pytest.raises(FactsMissing, match="neither that nor a GGUF file"):
        LlmFacts.read(InMemoryFolder("m", {"readme.md": b""}))


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"{", "is not JSON"), (b"[]", "holds no JSON object"), (bytes(9 << 20), "too much for a config")],
    ids=["cut", "a list", "too long"],
)
def test_a_config_that_is_none_is_refused_by_name(data: bytes, why: str) -> None:
    with pytest.raises(FactsMissing, match=rf"config.json of m .*{why}|{why}"):
        read_json(InMemoryFolder("m", {"config.json": data}), "config.json")


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(FactsMissing, match="m has no x"):
        InMemoryFolder("m", {}).read("x", 0, 1)
    with pytest.raises(FactsMissing, match="can't be read: No such file"):
        LocalFolder(Path("/nowhere")).read("x", 0, 1)


# -- diffusion pipelines


INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
}


def pipeline(files: Mapping[str, bytes]) -> InMemoryFolder:
    return InMemoryFolder("p", {"model_index.json": json.dumps(INDEX).encode(), **files})


def test_a_pipelines_components_are_read_with_their_configs() -> None:
    weights = safetensors({"w": ("F32", [4, 4])})
    files = {
        "unet/config.json": b'{"block_out_channels": [32, 64]}',
        "unet/diffusion_pytorch_model.safetensors": weights,
        "unet/diffusion_pytorch_model.fp16.safetensors": weights,
        "vae/diffusion_pytorch_model.fp16.safetensors": weights,
        "vae/diffusion_pytorch_model.ema.safetensors": weights,
    }
    facts = ImageFacts.read(pipeline(files))
    assert [(part.name, part.tensors.values) for part in facts.components] == [("unet", 16), ("vae", 16)]
    assert facts.config("unet") == {"block_out_channels": [32, 64]}
    assert facts.config("transformer") == {}


def test_what_is_no_pipeline_says_so() -> None:
    with pytest.raises(FactsMissing, match=r"no model_index\.json"):
        ImageFacts.read(InMemoryFolder("p", {}))
    with pytest.raises(FactsMissing, match=r"no \.safetensors in its components"):
        ImageFacts.read(pipeline({}))


# -- templates


def test_a_templates_meshes_and_textures_are_told_apart(tmp_path: Path) -> None:
    document = {"bufferViews": [{"byteLength": 1000}, {"byteLength": 300}], "images": [{"bufferView": 1}]}
    scene = json.dumps(document).encode()
    file = tmp_path / "a.glb"
    file.write_bytes(struct.pack("<III", 0x46546C67, 2, 0) + struct.pack("<II", len(scene), 0x4E4F534A) + scene)
    facts = MockupFacts.of_files([file])
    assert (facts.mesh_bytes, facts.texture_bytes) == (1000, 300)
    file.write_bytes(b"not a GLB, not at all")
    with pytest.raises(FactsMissing, match="is no GLB file"):
        MockupFacts.of_files([file])


def test_a_template_that_is_not_here_counts_as_an_ordinary_one_and_says_so() -> None:
    facts = templates(["mug", "./elsewhere.glb"])
    assert facts.mesh_bytes > 32 << 20
    assert "elsewhere not here" in facts.source
    assert templates(["mug", "poster"]).mesh_bytes > 200_000


# -- where facts are looked for


def test_bundled_models_are_known_before_anything_is_made_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    smol, tiny = llm_facts("smollm2-135m"), image_facts("tiny-inpaint")
    assert smol is not None
    assert tiny is not None
    assert smol.decoder.count.total == 134_515_008
    assert sum(part.tensors.values for part in tiny.components) == pytest.approx(1.3e6, rel=0.05)


@pytest.mark.parametrize("name", ["smollm2-135m-v3", "tiny-inpaint-v1"])
def test_bundled_facts_are_those_of_the_converted_folders(name: str) -> None:
    folder = Path(os.environ.get("COTENANT_HOME") or Path.home() / ".cache/cotenant") / "models" / name
    if not folder.is_dir():
        pytest.skip(f"{name} was not converted on this machine")
    if name.startswith("smollm2"):
        found, known = LlmFacts.of_folder(folder), LLMS["smollm2-135m"]()
        assert found.tensors is not None
        assert found.tensors.values == known.decoder.count.total
        assert found.decoder.kv == known.decoder.kv
        assert found.decoder.count == known.decoder.count
    else:
        image, tiny = ImageFacts.of_folder(folder), IMAGES["tiny-inpaint"]()
        assert {part.name: part.tensors.matrices for part in image.components} == {
            part.name: part.tensors.matrices for part in tiny.components
        }
        assert [part.tensors.largest for part in image.components] == [part.tensors.largest for part in tiny.components]


def cached(home: Path, model: str, files: Mapping[str, bytes]) -> None:
    base = home / "hub" / f"models--{model.replace('/', '--')}"
    snapshot = base / "snapshots/abc"
    snapshot.mkdir(parents=True)
    (base / "refs").mkdir()
    (base / "refs/main").write_text("abc")
    for name, data in files.items():
        (snapshot / name).write_bytes(data)


def test_the_hubs_cache_is_looked_into_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    cached(tmp_path, "a/b", {"config.json": json.dumps(CONFIG).encode()})
    facts = llm_facts("a/b", InMemoryHub({}))
    assert facts is not None
    assert facts.source == "config.json of a/b"


def test_a_cache_without_all_shards_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    config = {"config.json": json.dumps(CONFIG).encode()}
    index = {"weight_map": {"w": "model-1.safetensors"}}
    cached(tmp_path, "a/b", {**config, "model.safetensors.index.json": json.dumps(index).encode()})
    cached(tmp_path, "a/c", {**config, "model.safetensors.index.json": b"{"})
    assert llm_facts("a/b") is None
    assert llm_facts("a/c") is None
    assert llm_facts("a/none") is None


def test_a_hub_is_asked_for_what_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    hub = InMemoryHub({"a/b": InMemoryFolder("a/b", {"config.json": json.dumps(CONFIG).encode()})})
    assert llm_facts("a/b", hub) is not None
    with pytest.raises(FactsMissing, match="no model 'a/c'"):
        llm_facts("a/c", hub)


def test_a_path_that_leads_nowhere_says_so_and_an_object_store_is_not_asked(tmp_path: Path) -> None:
    with pytest.raises(FactsMissing, match="there is no folder"):
        llm_facts(str(tmp_path / "none"))
    assert llm_facts("gs://bucket/model", InMemoryHub({})) is None
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf_file(LLAMA_KEYS, {"w": ([32], 2)}, tokens=5))
    facts = llm_facts(str(file))
    assert facts is not None
    assert facts.decoder.layers == 1


def test_each_kind_of_workload_finds_its_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    budget = GpuBudget(vram_gib=1.0)
    llm = Workload(llm=LlmSpec(model="smollm2-135m"), gpu=budget)
    image = Workload(image=ImageSpec(model="tiny-inpaint"), gpu=budget)
    mockup = Workload(mockup=MockupSpec(), gpu=budget)
    assert isinstance(facts_of(llm), LlmFacts)
    assert isinstance(facts_of(image), ImageFacts)
    assert isinstance(facts_of(mockup), MockupFacts)
    assert is_at_hand(llm)
    assert is_at_hand(mockup)
    assert not is_at_hand(Workload(llm=LlmSpec(model="a/b"), gpu=budget))
