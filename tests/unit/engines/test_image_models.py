"""Where a pipeline comes from: what is refused early, what appears whole, and that only safetensors count."""

from __future__ import annotations

import json
import struct
import threading
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from cotenant.engines.image import placement, weights
from cotenant.engines.image.models import Model, copy_store, index_of, locate, materialise, once, require_pipeline
from cotenant.errors import EnvironmentFault

pytestmark = pytest.mark.unit


def safetensors(**shapes: list[int]) -> bytes:
    header = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "sdxl"
    (made / "unet").mkdir(parents=True)
    (made / "vae").mkdir()
    (made / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "U"]}')
    (made / "unet" / "model-00001.safetensors").write_bytes(safetensors(a=[1000, 1000], b=[24]))
    (made / "unet" / "model-00002.safetensors").write_bytes(safetensors(c=[1000]))
    (made / "vae" / "model.safetensors").write_bytes(safetensors(d=[]))
    return made


def test_a_name_says_what_it_is(folder: Path) -> None:
    assert locate("tiny-inpaint").kind == "bundled"
    assert locate("s3://bucket/sdxl") == Model("s3://bucket/sdxl", "remote", "s3://bucket/sdxl")
    assert locate("gs://bucket/sdxl").kind == "remote"
    assert locate("black-forest-labs/FLUX.2-klein-4B").kind == "hub"
    assert locate(str(folder)) == Model(str(folder), "folder", str(folder))
    assert materialise(locate(str(folder)), folder) == folder


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "~/no-such-folder-here"])
def test_a_folder_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(EnvironmentFault, match="no such folder: give another path"):
        locate(name)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"a folder without model_index\.json"):
        locate(str(tmp_path))


def test_a_folder_of_pickles_is_refused(folder: Path) -> None:
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(EnvironmentFault, match=r"needs weights as \.safetensors"):
        require_pipeline(folder, "sdxl")


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"_class_name": ["pipeline", "Theirs"]}'])
def test_a_folder_that_brings_its_own_code_or_no_class_is_refused(folder: Path, index: str) -> None:
    (folder / "model_index.json").write_text(index)
    with pytest.raises(EnvironmentFault, match=r"model_index\.json"):
        index_of(folder)


def test_of_many_that_make_a_folder_one_does_and_nobody_sees_half(tmp_path: Path) -> None:
    made: list[Path] = []
    seen: list[int] = []

    def make(work: Path) -> None:
        made.append(work)
        for index in range(5):
            (work / str(index)).write_text("x")

    def ask() -> None:
        seen.append(len(list(once(tmp_path / "models" / "tiny", make).iterdir())))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [5] * 8
    assert len(made) == 1


def test_a_making_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails(work: Path) -> None:
        (work / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        once(tmp_path / "tiny", fails)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.lock"]


def test_a_folder_in_an_object_store_is_copied_without_its_pickles(tmp_path: Path, folder: Path) -> None:
    store = MemoryStore()
    for file in folder.rglob("*.*"):
        store.put(str(file.relative_to(folder)), file.read_bytes())
    store.put("unet/model.bin", b"pickle")
    store.put("unet/code.py", b"import os")
    copy_store(store, tmp_path / "copy")
    require_pipeline(tmp_path / "copy", "sdxl")
    assert weights.parameters(tmp_path / "copy") == weights.parameters(folder)
    assert not list((tmp_path / "copy").rglob("*.bin"))
    assert not list((tmp_path / "copy").rglob("*.py"))


def test_an_empty_prefix_in_an_object_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="no pipeline's files at that prefix"):
        copy_store(MemoryStore(), tmp_path)


def test_an_object_stores_folder_is_fetched_once_into_the_home_folder(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def memory(uri: str) -> MemoryStore:
        opened.append(uri)
        store = MemoryStore()
        for file in folder.rglob("*.*"):
            store.put(str(file.relative_to(folder)), file.read_bytes())
        return store

    monkeypatch.setattr("obstore.store.from_url", memory)
    made = [materialise(locate(uri), tmp_path / "home") for uri in ("s3://bucket/sdxl", "s3://bucket/sdxl/")]
    assert made[0] == made[1]
    assert made[0].name.startswith("sdxl-")
    assert opened == ["s3://bucket/sdxl/"]


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError("denied"), "can't be fetched: OSError: denied"), (EnvironmentFault("empty"), "^empty$")],
)
def test_an_object_store_that_fails_is_a_clear_fault_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fails(uri: str) -> MemoryStore:
        raise error

    monkeypatch.setattr("obstore.store.from_url", fails)
    with pytest.raises(EnvironmentFault, match=said):
        materialise(locate("gs://bucket/sdxl"), tmp_path)
    assert not list((tmp_path / "models").glob("[!.]*[!k]"))


def test_parameters_are_counted_from_headers_alone(folder: Path) -> None:
    assert weights.parameters(folder) == {"unet": 1_001_024, "vae": 1}


def test_a_file_that_is_no_safetensors_is_told(folder: Path) -> None:
    (folder / "vae" / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="no safetensors file"):
        weights.parameters(folder)


def test_weights_are_sized_by_type_and_only_what_is_quantised_shrinks() -> None:
    counts = {"transformer": 2**30, "vae": 2**30}
    assert weights.gib_of(counts, "bfloat16", "none", frozenset()) == {"transformer": 2.0, "vae": 2.0}
    sizes = weights.gib_of(counts, "float32", "4bit", frozenset({"transformer"}))
    assert sizes == {"transformer": pytest.approx(0.56), "vae": 4.0}


# --- placement ------------------------------------------------------------------------------------------------

#: FLUX.2-klein-4B: about 15 GB in bfloat16 as stored, half transformer, half text encoder.
KLEIN = {"transformer": 7.2, "text_encoder": 7.5, "vae": 0.16}


@pytest.mark.parametrize(
    ("weights_gib", "vram_gib", "chosen"),
    [
        pytest.param(KLEIN, 22.0, "none", id="whole on an L4"),
        pytest.param(KLEIN, 12.0, "model", id="part by part in half of one"),
        pytest.param(KLEIN, 6.0, "sequential", id="layer by layer"),
        pytest.param({name: gib * 0.28 for name, gib in KLEIN.items()}, 6.0, "none", id="in four bits"),
        pytest.param({}, 1.0, "none", id="nothing to place"),
    ],
)
def test_offload_is_chosen_by_the_budget(weights_gib: dict[str, float], vram_gib: float, chosen: str) -> None:
    assert placement.offload_of("auto", weights_gib, vram_gib) == chosen


def test_offload_that_is_asked_for_is_not_second_guessed() -> None:
    assert placement.offload_of("sequential", {}, 24.0) == "sequential"


def test_room_is_the_budget_without_context_and_what_stays_on_the_gpu() -> None:
    assert placement.room_gib("none", KLEIN, 22.0) == pytest.approx(22.0 - 0.5 - 14.86)
    assert placement.room_gib("model", KLEIN, 12.0) == pytest.approx(12.0 - 0.5 - 0.16)
    assert placement.room_gib("sequential", KLEIN, 6.0) == 5.5
    assert placement.room_gib("none", KLEIN, 4.0) == 0.0


def test_tiles_are_for_pictures_that_the_room_does_not_hold() -> None:
    assert not placement.tiles(1024 * 1024, room_gib=2.0, channels=256, bytes_per_value=2)
    assert placement.tiles(2048 * 2048, room_gib=2.0, channels=256, bytes_per_value=2)


def test_torch_may_take_the_budget_without_the_context_and_never_more_than_there_is() -> None:
    assert placement.cap_fraction(12.0, 22.0) == pytest.approx(11.5 / 22.0)
    assert placement.cap_fraction(0.6, 22.0) == pytest.approx(0.3 / 22.0)
    assert placement.cap_fraction(40.0, 22.0) == 1.0
