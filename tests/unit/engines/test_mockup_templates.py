"""Templates: the committed files are what the script makes, and a bad file says what it would need."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cotenant.engines.mockup import studio, template, variant

pytestmark = pytest.mark.unit

SCRIPT = Path(__file__).parents[3] / "scripts" / "make_templates.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_templates", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_templates"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["mug", "poster"])
def test_the_committed_file_is_what_the_script_makes(script: ModuleType, name: str) -> None:
    assert (template.BUNDLED / f"{name}.glb").read_bytes() == script.glb(script.TEMPLATES[name]())


@pytest.mark.parametrize(("name", "aspect"), [("mug", 1.276), ("poster", 40 / 56)])
def test_a_bundled_template_has_slot_camera_and_backdrop(name: str, aspect: float) -> None:
    loaded = template.load(name)
    assert loaded.aspect == pytest.approx(aspect, rel=0.01)
    assert loaded.backdrop is not None
    assert loaded.camera.fov_deg < 40
    assert 0.03 < loaded.radius < 1
    assert "backdrop" not in [part.name for part in loaded.parts]


@pytest.mark.parametrize("name", ["mug", "poster"])
def test_every_triangle_is_wound_the_way_its_normals_look(name: str) -> None:
    loaded = template.load(name)
    for part in (loaded.slot, *loaded.parts):
        corners = part.positions[part.faces].astype(np.float64)
        wound = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert (np.einsum("ij,ij->i", wound, part.normals[part.faces].mean(axis=1)) > 0).all(), part.name
        assert np.allclose(np.linalg.norm(part.normals, axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("name", ["mug", "poster"])
def test_the_slot_faces_the_camera_upright_and_unmirrored(name: str) -> None:
    loaded = template.load(name)
    slot, camera = loaded.slot, loaded.camera
    assert slot.uvs is not None
    assert slot.uvs.min() == 0 and slot.uvs.max() == 1
    seen = slot.positions - camera.eye.astype(np.float32)
    right, up = seen @ camera.right, seen @ camera.up
    assert np.corrcoef(right, slot.uvs[:, 0])[0, 1] > 0.9
    assert np.corrcoef(up, slot.uvs[:, 1])[0, 1] < -0.9
    assert (slot.normals @ camera.back > 0).all()


def write_glb(path: Path, change: dict[str, Any] | None = None, *, keep: bool = True) -> Path:
    """The poster with parts of its JSON replaced."""
    data = (template.BUNDLED / "poster.glb").read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    document = json.loads(data[20 : 20 + length])
    document |= change or {}
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :] if keep else b""
    head = struct.pack("<III", 0x46546C67, 2, 20 + len(text) + len(rest))
    path.write_bytes(head + struct.pack("<II", len(text), 0x4E4F534A) + text + rest)
    return path


def names(*materials: str) -> dict[str, Any]:
    parts = [{"name": name, "pbrMetallicRoughness": {}} for name in materials]
    return {"materials": parts}


def test_a_template_of_ones_own_is_a_path_and_called_by_its_stem(tmp_path: Path) -> None:
    assert template.load(str(write_glb(tmp_path / "shirt.glb"))).name == "shirt"


def test_a_template_without_a_camera_gets_one_that_sees_the_slot(tmp_path: Path) -> None:
    data = json.loads((template.BUNDLED / "poster.glb").read_bytes()[20:].split(b"\0", 1)[0].rpartition(b"}")[0] + b"}")
    nodes = [node for node in data["nodes"] if "camera" not in node]
    path = write_glb(tmp_path / "plain.glb", {"nodes": nodes, "scenes": [{"nodes": list(range(len(nodes)))}]})
    loaded = template.load(str(path))
    towards = loaded.centre - loaded.camera.eye
    assert float(towards @ -loaded.camera.back) == pytest.approx(float(np.linalg.norm(towards)), rel=1e-6)
    assert loaded.camera.back[2] > 0.9


def test_an_unknown_template_names_those_there_are() -> None:
    with pytest.raises(template.TemplateError, match=r"'mugg' is not there; use one of mug, poster"):
        template.find("mugg")
    with pytest.raises(template.TemplateError, match="is not there"):
        template.find("/nowhere/mug.glb")


def test_a_file_without_a_slot_says_which_materials_it_has(tmp_path: Path) -> None:
    scene = {"nodes": [{"name": f"n{i}", "mesh": i} for i in range(4)], "scenes": [{"nodes": [0, 1, 2, 3]}]}
    path = write_glb(
        tmp_path / "plain.glb", names("frame", "mat", "print", "backdrop") | scene | {"meshes": _renamed()}
    )
    with pytest.raises(template.TemplateError, match=r"plain\.glb needs one mesh .* 'artwork', it has 0 .*print"):
        template.load(str(path))


def _renamed() -> list[dict[str, Any]]:
    data = (template.BUNDLED / "poster.glb").read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    meshes: list[dict[str, Any]] = json.loads(data[20 : 20 + length])["meshes"]
    return [mesh | {"name": f"m{i}"} for i, mesh in enumerate(meshes)]


@pytest.mark.parametrize("data", [b"", b"not a glb", b"glTF" + bytes(100)])
def test_a_file_that_is_no_glb_says_so(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.glb").write_bytes(data)
    with pytest.raises(template.TemplateError, match=r"bad\.glb is not a readable GLB"):
        template.load(str(tmp_path / "bad.glb"))


@pytest.mark.parametrize("name", ["mug", "poster"])
def test_the_light_comes_from_the_upper_left_and_not_through_the_backdrop(name: str) -> None:
    loaded = template.load(name)
    light = studio.environment(loaded).mean(axis=2)
    assert np.isfinite(light).all() and light.min() > 0
    directions = studio._directions()
    assert loaded.backdrop is not None
    behind = light[directions @ loaded.backdrop.normal < -0.1]
    assert behind.max() - behind.min() < 1e-6
    brightest = directions[np.unravel_index(light.argmax(), light.shape)]
    assert brightest @ loaded.camera.right < 0 < brightest @ loaded.camera.up


@pytest.mark.parametrize(
    ("file", "version"),
    [("libLLVM-19.so", 19), ("libLLVM.so.19.1", 19), ("libLLVM-15.so.1", 15), ("libsomething.so", None)],
)
def test_the_llvm_version_is_read_from_the_library_name(file: str, version: int | None) -> None:
    assert variant.llvm_version(file) == version


def test_an_llvm_that_would_abort_is_passed_over_without_trying_it(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "libLLVM-15.so").touch()
    monkeypatch.setenv(variant.LIBRARY, str(tmp_path / "libLLVM-15.so"))
    library, problem = variant.llvm_library()
    assert library is None
    assert problem is not None and "LLVM 15, which aborts" in problem
    monkeypatch.setenv(variant.LIBRARY, str(tmp_path / "gone.so"))
    assert "is not a file" in str(variant.llvm_library()[1])


def test_the_fastest_variant_that_works_is_taken_and_the_others_failures_are_told(monkeypatch: Any) -> None:
    failures = {"cuda_ad_rgb": "no driver", "llvm_ad_rgb": "killed by signal 6"}
    monkeypatch.setattr(variant, "llvm_library", lambda: ("/lib/libLLVM-19.so", None))
    monkeypatch.setattr(variant, "_probe", lambda name, library: failures.get(name))
    chosen = variant.probed("auto")
    assert (chosen.name, chosen.llvm) == ("scalar_rgb", None)
    assert "cuda: no driver; llvm: killed by signal 6" in chosen.reason
    failures["scalar_rgb"] = "no mitsuba"
    with pytest.raises(variant.EnvironmentFault, match="no mitsuba"):
        variant.probed("auto")
    with pytest.raises(variant.EnvironmentFault, match=r"\(cuda\), none is: cuda: no driver;"):
        variant.probed("cuda")
