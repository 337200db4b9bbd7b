"""What mockup starts keep: found again under the same key only, and never worse than nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cotenant.engines.mockup import kept, variant

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COTENANT_HOME", str(tmp_path))
    monkeypatch.delenv(variant.KERNELS, raising=False)
    return tmp_path


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Back ends that were probed; only LLVM works."""
    asked: list[str] = []

    def probe(name: str, library: str | None) -> str | None:
        asked.append(name)
        return None if name.startswith("llvm") else "no GPU here"

    monkeypatch.setattr(variant, "_probe", probe)
    monkeypatch.setattr(variant, "llvm_library", lambda: (__file__, None))
    return asked


def test_a_back_end_that_worked_is_not_probed_again(probes: list[str]) -> None:
    first = variant.choose()
    assert probes == ["cuda_ad_rgb", "llvm_ad_rgb"]
    assert variant.choose() == first
    assert len(probes) == 2


def test_other_gpus_another_library_and_another_choice_are_probed(
    probes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant.choose()
    variant.choose("llvm")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    variant.choose("llvm")
    other = tmp_path / "libLLVM-20.so"
    other.write_bytes(b"new")
    monkeypatch.setattr(variant, "llvm_library", lambda: (str(other), None))
    variant.choose("llvm")
    other.write_bytes(b"newer")
    variant.choose("llvm")
    assert probes[2:] == ["llvm_ad_rgb"] * 4


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"speed": 1}'], ids=["empty", "torn", "list", "foreign"])
def test_a_file_that_can_not_be_read_is_none(probes: list[str], home: Path, content: bytes) -> None:
    first = variant.choose()
    (file,) = (home / "cache" / "mockup").glob("*.variant.json")
    file.write_bytes(content)
    assert variant.choose() == first
    assert len(probes) == 4


def test_a_shadow_comes_back_to_the_byte() -> None:
    baked = np.random.default_rng(1).random((9, 9), dtype=np.float32)
    assert kept.shadow("a") is None
    kept.keep_shadow("a", baked)
    found = kept.shadow("a")
    assert found is not None
    assert found.tobytes() == baked.tobytes()
    assert kept.shadow("b") is None


@pytest.mark.parametrize(
    "content",
    [np.zeros(3, np.float32), np.zeros((3, 3)), np.full((3, 3), np.nan, np.float32)],
    ids=["flat", "wide", "nan"],
)
def test_a_shadow_that_is_none_is_baked_anew(content: np.ndarray) -> None:
    kept.keep_shadow("a", content)
    assert kept.shadow("a") is None


def test_a_torn_shadow_is_baked_anew(home: Path) -> None:
    kept.keep_shadow("a", np.zeros((3, 3), np.float32))
    (file,) = (home / "cache" / "mockup").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert kept.shadow("a") is None


def test_a_folder_that_can_not_be_written_costs_only_time(home: Path) -> None:
    (home / "cache").write_text("a file")
    kept.keep_shadow("a", np.zeros((3, 3), np.float32))
    assert kept.shadow("a") is None


def test_keys_tell_parts_apart() -> None:
    assert kept.key("a", "b") == kept.key("a", "b")
    assert kept.key("a", "b") != kept.key("ab")
    assert kept.key("a") != kept.key("b")
