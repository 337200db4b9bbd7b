"""Images, built for real: on a base of Debian's own packages, weighed, run as a pod would, and built again.

The doors' image by default. COTENANT_TEST_IMAGES=all builds engines-cpu too, which takes a quarter of an hour the first
time, and renders a mug in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import image_sizes

pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parents[2]
IMAGES = ("doors", "engines-cpu") if os.environ.get("COTENANT_TEST_IMAGES") == "all" else ("doors",)
#: What `.dockerignore` lets through, and what builds.
SOURCES = (".dockerignore", "LICENSE", "deployments", "images", "platform", "requirements", "scripts")


@dataclass(frozen=True)
class Bench:
    """A copy of the sources that a test may change, and a layout that images are written to."""

    root: Path
    layout: Path
    base: str

    def build(self, image: str) -> image_sizes.Image:
        command = ["scripts/build_images", image, "--tool", "buildah", "--base", self.base, "--oci", str(self.layout)]
        command += ["--registry", "localhost/cotenant-test", "--tag", "test"]
        run(command, self.root)
        return next(found for found in image_sizes.read(self.layout) if found.name == image)

    @staticmethod
    def reference(image: str) -> str:
        return f"localhost/cotenant-test/{image}:test"


def run(command: list[str], root: Path) -> str:
    # Without user namespaces or a container runtime of the machine's own, chroot is what always works for root.
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if os.geteuid() != 0:
        pytest.skip("making a base for images needs root")
    tools = subprocess.run([ROOT / "scripts" / "image_tools"], capture_output=True, text=True, check=False)
    if tools.returncode != 0:
        pytest.skip(f"no tools to build images with: {tools.stderr.strip()[-300:]}")
    base = run(["scripts/substitute_base"], ROOT).strip()
    folder = tmp_path_factory.mktemp("images")
    for name in SOURCES:
        source, target = ROOT / name, folder / "copy" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    (folder / "copy" / ".venv").symlink_to((ROOT / ".venv").resolve())
    yield Bench(folder / "copy", folder / "layout", base)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", params=IMAGES)
def built(request: pytest.FixtureRequest, bench: Bench) -> image_sizes.Image:
    return bench.build(request.param)


def test_an_image_is_within_its_budget_and_fit_for_streaming(built: image_sizes.Image) -> None:
    assert list(image_sizes.faults(built)) == []
    assert built.config["User"] == "1000:1000"
    assert built.config["Entrypoint"] == ["cotenant"]


def test_an_image_can_do_what_it_is_for(bench: Bench, built: image_sizes.Image) -> None:
    folder = bench.root / "checked"
    command = ["scripts/check_image", built.name, bench.reference(built.name)]
    if built.name == "doors":
        told = run(command, bench.root)
        assert "the gateway listens" in told and "the head came up" in told
        return
    (bench.root / "demo").mkdir()
    shutil.copy2(ROOT / "demo" / "artwork.png", bench.root / "demo" / "artwork.png")
    run([*command, str(folder)], bench.root)
    picture = np.asarray(Image.open(folder / "mug.png").convert("RGB"))
    assert picture.shape == (512, 512, 3) and picture.std() > 20


def test_a_change_of_application_code_is_less_than_5_mb_to_pull(bench: Bench, built: image_sizes.Image) -> None:
    changed = bench.root / "deployments" / "asked.py"
    changed.write_text(changed.read_text() + "\nCHANGED = True\n")
    after = bench.build(built.name)
    assert 0 < image_sizes.invalidated(built, after) < image_sizes.APPLICATION_MB * image_sizes.MB
    assert [layer.digest for layer in after.layers[:-1]] == [layer.digest for layer in built.layers[:-1]]
