"""Templates: GLB files read into plain arrays. No renderer here, so a bad file is found without one.

Always true of a `Template`: exactly one slot (the material named `artwork`), whose UVs cover the unit square with
V downwards, as in glTF and in the renderer (trimesh turns it, we turn it back); positions are in metres, Y up.
"""

from __future__ import annotations

import importlib
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cotenant.errors import CotenantError

BUNDLED = Path(__file__).parent / "templates"
SLOT = "artwork"
BACKDROP = "backdrop"

Floats = NDArray[np.float32]
Vector = NDArray[np.float64]


class TemplateError(CotenantError):
    """A template is missing or is not one: the text says which, and what it would need."""


@dataclass(frozen=True)
class Part:
    """A mesh of one material. Colours are linear; `texture` is sRGB, 8 bit, (h, w, 3), or None."""

    name: str
    positions: Floats
    normals: Floats
    uvs: Floats | None
    faces: NDArray[np.uint32]
    base_color: tuple[float, float, float]
    roughness: float
    metallic: float
    texture: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Camera:
    """Camera to world (columns: right, up, back, eye) and the field of view of the shorter side."""

    to_world: Vector
    fov_deg: float

    @property
    def right(self) -> Vector:
        return np.asarray(self.to_world[:3, 0])

    @property
    def up(self) -> Vector:
        return np.asarray(self.to_world[:3, 1])

    @property
    def back(self) -> Vector:
        return np.asarray(self.to_world[:3, 2])

    @property
    def eye(self) -> Vector:
        return np.asarray(self.to_world[:3, 3])


@dataclass(frozen=True)
class Plane:
    """The floor or wall that catches the shadow: a point on it and the normal of its visible side."""

    point: Vector
    normal: Vector


@dataclass(frozen=True)
class Template:
    """A product with one artwork slot. `aspect` is the slot's width over its height, in metres on the product."""

    name: str
    parts: tuple[Part, ...]
    slot: Part
    aspect: float
    camera: Camera
    backdrop: Plane | None
    centre: Vector
    radius: float


def find(template: str) -> Path:
    """The file of a bundled template's name, or of a path to a GLB. Raises TemplateError if there is none."""
    path = Path(template) if template.endswith(".glb") else BUNDLED / f"{template}.glb"
    if not path.is_file():
        have = ", ".join(sorted(file.stem for file in BUNDLED.glob("*.glb")))
        raise TemplateError(f"template {template!r} is not there; use one of {have}, or the path of a .glb file")
    return path


def load(template: str) -> Template:
    """Reads a template. Raises TemplateError, with the file's name, if it can't be one."""
    trimesh = importlib.import_module("trimesh")  # half a second that a deploy's validation does without
    path = find(template)
    try:
        scene = trimesh.load_scene(io.BytesIO(path.read_bytes()), file_type="glb", process=False)
        parts = [_part(scene, node) for node in sorted(scene.graph.nodes_geometry)]
    except Exception as error:  # trimesh raises whatever its parser met
        raise TemplateError(
            f"{path} is not a readable GLB ({type(error).__name__}: {error}); export it again"
        ) from error
    slots = [part for part in parts if part.name == SLOT]
    if len(slots) != 1:
        have = ", ".join(part.name for part in parts) or "none"
        raise TemplateError(
            f"{path.name} needs one mesh with a material or node named {SLOT!r}, it has {len(slots)}"
            f" (its materials: {have}); name the material that the picture goes on"
        )
    slot = slots[0]
    if slot.uvs is None:
        raise TemplateError(f"{path.name}: the {SLOT!r} mesh has no UVs; unwrap it over the unit square")
    product = [part for part in parts if part.name != BACKDROP]
    corners = np.vstack([part.positions for part in product]).astype(np.float64)
    low, high = corners.min(axis=0), corners.max(axis=0)
    centre, radius = (low + high) / 2, float(np.linalg.norm(high - low) / 2)
    backdrops = [part for part in parts if part.name == BACKDROP]
    return Template(
        name=path.stem,
        parts=tuple(part for part in product if part is not slot),
        slot=slot,
        aspect=_aspect(slot),
        camera=_camera(scene) or _default_camera(slot, centre, radius),
        backdrop=_plane(backdrops[0]) if backdrops else None,
        centre=centre,
        radius=radius,
    )


def _part(scene: Any, node: str) -> Part:
    transform, geometry = scene.graph[node]
    mesh = scene.geometry[geometry]
    # By hand, since trimesh forgets the file's own normals when it transforms a copy.
    turn = np.asarray(transform[:3, :3])
    positions = mesh.vertices @ turn.T + transform[:3, 3]
    normals = mesh.vertex_normals @ np.linalg.inv(turn)
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    material = getattr(mesh.visual, "material", None)
    names = [str(getattr(material, "name", "")), node, geometry]
    name = next((known for known in (SLOT, BACKDROP) if known in names), names[0] or node)
    uvs = getattr(mesh.visual, "uv", None)
    if uvs is not None:
        uvs = np.asarray(uvs) * [1.0, -1.0] + [0.0, 1.0]
    factor = getattr(material, "baseColorFactor", None)
    color = (0.8, 0.8, 0.8) if factor is None else tuple(float(c) / 255 for c in np.asarray(factor)[:3])
    image = getattr(material, "baseColorTexture", None)
    roughness, metallic = getattr(material, "roughnessFactor", None), getattr(material, "metallicFactor", None)
    return Part(
        name=name,
        positions=np.ascontiguousarray(positions, dtype=np.float32),
        normals=np.ascontiguousarray(normals, dtype=np.float32),
        uvs=None if uvs is None else np.ascontiguousarray(uvs, dtype=np.float32),
        faces=np.ascontiguousarray(mesh.faces, dtype=np.uint32),
        base_color=(color[0], color[1], color[2]),
        roughness=1.0 if roughness is None else float(roughness),
        metallic=0.0 if metallic is None else float(metallic),
        texture=np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else None,
    )


def _aspect(slot: Part) -> float:
    """Width over height of the slot on the product: how far a step in U carries against a step in V, by area."""
    assert slot.uvs is not None
    corners, uvs = slot.positions[slot.faces].astype(np.float64), slot.uvs[slot.faces].astype(np.float64)
    edges, steps = corners[:, 1:] - corners[:, :1], uvs[:, 1:] - uvs[:, :1]
    area = np.abs(np.linalg.det(steps))
    kept = area > 1e-12
    if not kept.any():
        raise TemplateError(f"the {SLOT!r} mesh has UVs without area; unwrap it over the unit square")
    tangents = np.linalg.solve(steps[kept], edges[kept])
    lengths = np.average(np.linalg.norm(tangents, axis=2), axis=0, weights=area[kept])
    return float(lengths[0] / lengths[1])


def _camera(scene: Any) -> Camera | None:
    if not scene.has_camera:
        return None
    return Camera(np.asarray(scene.camera_transform, dtype=np.float64), float(min(scene.camera.fov)))


def _default_camera(slot: Part, centre: Vector, radius: float) -> Camera:
    """Looks at the product from the slot's side, slightly from above, with a little air round it."""
    normal = slot.normals.mean(axis=0).astype(np.float64)
    back = normal / np.linalg.norm(normal) + np.array([0.0, 0.2, 0.0])
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 1.0, 0.0], back)
    right = right / np.linalg.norm(right) if np.linalg.norm(right) > 1e-6 else np.array([1.0, 0.0, 0.0])
    fov_deg = 24.0
    eye = centre + back * radius / math.sin(math.radians(fov_deg / 2)) * 1.1
    to_world = np.eye(4)
    to_world[:3, :4] = np.column_stack([right, np.cross(back, right), back, eye])
    return Camera(to_world, fov_deg)


def _plane(part: Part) -> Plane:
    normal = part.normals.mean(axis=0).astype(np.float64)
    return Plane(part.positions.mean(axis=0).astype(np.float64), normal / np.linalg.norm(normal))
