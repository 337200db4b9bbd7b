"""Locks of the images: every package in one layer, the versions that the tests ran with, wheels only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cotenant.manifests.ray_settings import RAY_VERSION
from scripts import layers

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
REQUIREMENTS = ROOT / "requirements"


def pins(*locks: Path) -> dict[str, str]:
    text = "".join(lock.read_text() for lock in locks)
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^\s;]+)", text, re.MULTILINE))


def of_image(image: str) -> dict[str, str]:
    return pins(*(REQUIREMENTS / "images" / image).glob("*.lock"))


@pytest.mark.parametrize(("image", "lock"), [("doors", "cpu"), ("engines-cpu", "cpu"), ("engines", "gpu")])
def test_an_image_holds_the_versions_of_the_lock_that_its_engines_are_tested_with(image: str, lock: str) -> None:
    tested = pins(REQUIREMENTS / f"{lock}.lock")
    assert {name: version for name, version in of_image(image).items() if tested.get(name) != version} == {}


@pytest.mark.parametrize("image", layers.LAYERS)
def test_files_are_what_the_table_of_layers_says_and_every_wheel_has_a_hash(image: str) -> None:
    folder = REQUIREMENTS / "images" / image
    found = {file.name: file.read_text() for file in folder.glob("*.lock")}
    assert sorted(found) == [f"{i}-{name}.lock" for i, (name, _) in enumerate(layers.LAYERS[image], start=1)]
    for name, text in found.items():
        lines = text.splitlines()
        assert lines, name
        assert all(re.match(r"^\S+==\S+( --hash=sha256:[0-9a-f]{64})+  # \d+ bytes$", line) for line in lines)
        assert "://" not in text
    packages = [line.partition("==")[0] for text in found.values() for line in text.splitlines()]
    assert len(packages) == len(set(packages))


def test_what_rays_processes_send_each_other_has_one_version_in_all_images() -> None:
    doors, engines = of_image("doors"), of_image("engines")
    for package in ("ray", "pydantic", "pydantic-core", "fastapi", "starlette", "numpy", "pillow", "orjson"):
        assert doors[package] == engines[package], package
    assert doors["ray"] == RAY_VERSION


def test_a_package_goes_into_the_first_layer_that_takes_it() -> None:
    locked = [layers.Locked(name, "1", ("0" * 64,), 7) for name in ("nvidia-nccl-cu13", "torch", "nvidia-ml-py", "ray")]
    cut = layers.cut("engines", locked)
    assert [name for name, text in cut.items() if "nccl" in text] == ["1-cuda.lock"]
    assert [name for name, text in cut.items() if text.startswith("torch==")] == ["2-torch.lock"]
    assert "nvidia-ml-py" in cut["5-rest.lock"]


def test_a_package_without_a_wheel_is_refused_with_what_to_do() -> None:
    pylock = {"packages": [{"name": "old", "version": "1.0", "sdist": {}}]}
    with pytest.raises(ValueError, match=r"old 1\.0 needs a wheel .* pin a version that has one"):
        layers.packages(pylock)


def test_the_cpus_torch_is_looked_for_only_where_a_lock_asks_for_it() -> None:
    """A local version satisfies `torch==2.13.0`, so beside the CPU's wheel a GPU image would get that."""
    assert "+cpu" in of_image("engines-cpu")["torch"] and "+" not in of_image("engines")["torch"]
    lines = (ROOT / "images" / "install").read_text().splitlines()
    asked = next(i for i, line in enumerate(lines) if line.startswith("if grep") and "+cpu" in line)
    ends = next(i for i, line in enumerate(lines) if i > asked and line == "fi")
    assert [i for i, line in enumerate(lines) if "/run/wheels" in line and "--find-links" in line and asked < i < ends]
    assert sum("--find-links" in line for line in lines) == 1
