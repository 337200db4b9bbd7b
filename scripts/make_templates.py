#!/usr/bin/env python3
"""Models the bundled mockup templates and writes them as GLB files. The geometry is ours, made here from numbers.

What a template is, for these and for anyone's own: a glTF scene in metres, Y up, with
  * a material named `artwork`: where the customer's picture goes, its UVs over the whole unit square,
    right side up seen from outside (glTF counts V downwards);
  * optionally a material named `backdrop` on a flat mesh: the floor or wall that catches the shadow;
  * optionally a camera; otherwise one is chosen.

The same numbers always give the same bytes: coordinates are rounded to a micrometre before they are written.

    python scripts/make_templates.py            writes the files
    python scripts/make_templates.py --check    exits 1 if a file differs from what would be written
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent.parent / "platform/cotenant/engines/mockup/templates"
Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass
class Part:
    """Triangles of one material: positions (n, 3) in metres, unit normals (n, 3), glTF UVs (n, 2), faces (m, 3)."""

    positions: Array
    normals: Array
    faces: Indices
    uvs: Array | None = None

    def joined(self, other: Part) -> Part:
        """Both as one part. UVs must be on both or on neither."""
        uvs = np.vstack([self.uvs, other.uvs]) if self.uvs is not None and other.uvs is not None else None
        faces = np.vstack([self.faces, other.faces + len(self.positions)])
        return Part(np.vstack([self.positions, other.positions]), np.vstack([self.normals, other.normals]), faces, uvs)


@dataclass
class Template:
    """A scene to write: parts by material name, materials as glTF has them, and the camera."""

    parts: dict[str, Part]
    materials: dict[str, dict[str, Any]]
    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    fov_deg: float
    extras: dict[str, Any] = field(default_factory=dict)


def grid(points: Array, normals: Array, uvs: Array | None = None) -> Part:
    """A part from a (rows, columns, 3) grid; faces look towards (d/dcolumn) x (d/drow)."""
    rows, columns = points.shape[:2]
    at = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = at[:-1, :-1].ravel(), at[:-1, 1:].ravel(), at[1:, 1:].ravel(), at[1:, :-1].ravel()
    faces = np.vstack([np.column_stack([a, b, c]), np.column_stack([a, c, d])])
    corners = points.reshape(-1, 3)[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    return Part(
        points.reshape(-1, 3), normals.reshape(-1, 3), faces[area > 1e-12], None if uvs is None else uvs.reshape(-1, 2)
    )


def flat(corners: list[tuple[float, float, float]], uvs: list[tuple[float, float]] | None = None) -> Part:
    """A flat quad, its corners counter-clockwise as seen from the front."""
    points = np.array(corners)
    normal = np.cross(points[1] - points[0], points[2] - points[0])
    normals = np.tile(normal / np.linalg.norm(normal), (4, 1))
    return Part(points, normals, np.array([[0, 1, 2], [0, 2, 3]]), None if uvs is None else np.array(uvs))


def arc(centre: tuple[float, float], radius: float, start_deg: float, end_deg: float, steps: int) -> Array:
    """(steps + 1, 2) points of a circular arc."""
    angles = np.radians(np.linspace(start_deg, end_deg, steps + 1))
    return np.column_stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)])


def revolve(profile: Array, normals: Array, angles: Array) -> Part:
    """Turn (rows, 2) points (radius, height) round the Y axis; angle 0 is +Z, a right angle is +X."""
    sin, cos = np.sin(angles), np.cos(angles)

    def turn(pairs: Array) -> Array:
        flat_rows = np.ones((len(pairs), len(angles)))
        columns = [np.outer(pairs[:, 0], sin), flat_rows * pairs[:, 1:], np.outer(pairs[:, 0], cos)]
        return np.asarray(np.stack(columns, axis=2))

    return grid(turn(profile), turn(normals))


def profile_normals(profile: Array) -> Array:
    """Unit normals of a profile drawn from the foot up along the outside: they point to its right."""
    along = np.gradient(profile, axis=0)
    normals = np.column_stack([along[:, 1], -along[:, 0]])
    return np.asarray(normals / np.linalg.norm(normals, axis=1, keepdims=True))


def mug() -> Template:
    """An 11 oz mug: 82 mm across, 95 mm tall, the print in front, the handle to the right."""
    radius, wall, height = 0.041, 0.0036, 0.095
    low, high = 0.0125, 0.0865
    # The print is turned a little towards the camera, which stands to the right to show the handle.
    left, right = math.radians(-57), math.radians(75)
    lip = wall / 2
    outside = np.vstack([[(0.0, 0.0015), (0.028, 0.0015), (0.030, 0.0)], arc((0.0325, 0.0085), 0.0085, -90, 0, 8)])
    rim = arc((radius - lip, height - lip), lip, 0, 180, 10)
    inside = np.vstack([arc((radius - wall - 0.012, 0.018), 0.012, 0, -90, 10), [(0.0, 0.006)]])

    # The print's rows and columns are lines of the body's own grid, so that the print can be cut out of it.
    front = np.linspace(left, right, 57)
    back = np.linspace(right, 2 * math.pi + left, 73)
    around = np.concatenate([front, back[1:]])

    def band(bottom: float, top: float, angles: Array) -> Part:
        profile = np.array([(radius, bottom), (radius, top)])
        return revolve(profile, np.array([(1.0, 0.0), (1.0, 0.0)]), angles)

    parts = [
        revolve(outside, profile_normals(outside), around),
        band(0.0085, low, around),
        band(low, high, back),
        band(high, height - lip, around),
        revolve(rim, profile_normals(rim), around),
        revolve(
            np.array([(radius - wall, height - lip), (radius - wall, 0.018)]), np.array([(-1.0, 0), (-1, 0)]), around
        ),
        revolve(inside, profile_normals(inside), around),
        handle(math.radians(102), 0.0395),
    ]
    body = parts[0]
    for part in parts[1:]:
        body = body.joined(part)

    printed = band(low, high, front)
    u = (front - left) / (right - left)
    printed.uvs = np.stack([np.tile(u, (2, 1)), np.repeat([[1.0], [0.0]], len(front), axis=1)], axis=2).reshape(-1, 2)

    floor = flat([(-1, 0, 1), (1, 0, 1), (1, 0, -1), (-1, 0, -1)])
    azimuth, elevation, distance = math.radians(17), math.radians(15), 0.40
    target = (0.0095, 0.0455, 0.0)
    eye = (
        target[0] + distance * math.cos(elevation) * math.sin(azimuth),
        target[1] + distance * math.sin(elevation),
        target[2] + distance * math.cos(elevation) * math.cos(azimuth),
    )
    return Template(
        parts={"body": body, "artwork": printed, "backdrop": floor},
        materials={
            "body": material((0.86, 0.86, 0.85), roughness=0.18),
            "artwork": material((0.86, 0.86, 0.85), roughness=0.22),
            "backdrop": material((0.9, 0.9, 0.9), roughness=1.0),
        },
        eye=eye,
        target=target,
        fov_deg=22.0,
    )


def handle(angle: float, start_radius: float) -> Part:
    """The handle: an oval tube along a Bezier curve in the upright plane at `angle`."""
    control = np.array([(start_radius, 0.0775), (0.0825, 0.0865), (0.0745, 0.0160), (start_radius, 0.0235)])
    t = np.linspace(0, 1, 33)[:, None]
    curve = (
        (1 - t) ** 3 * control[0]
        + 3 * (1 - t) ** 2 * t * control[1]
        + 3 * (1 - t) * t**2 * control[2]
        + t**3 * control[3]
    )
    along = np.gradient(curve, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    outward = np.column_stack([-along[:, 1], along[:, 0]])
    turn = np.linspace(2 * math.pi, 0, 25)
    # Fuller where it meets the wall, as poured clay is.
    swell = 1 + 0.35 * (2 * t[:, 0] - 1) ** 6
    thick, wide = 0.0040 * swell, 0.0070 * swell
    radial, side = np.array([math.sin(angle), 0, math.cos(angle)]), np.array([math.cos(angle), 0, -math.sin(angle)])
    up = np.array([0.0, 1.0, 0.0])

    def lift(pairs: Array) -> Array:
        return np.asarray(pairs[:, :1] * radial + pairs[:, 1:] * up)

    bend = lift(outward)[:, None, :] * np.cos(turn)[None, :, None]
    points = lift(curve)[:, None, :] + bend * thick[:, None, None] + side * (np.outer(wide, np.sin(turn)))[..., None]
    normals = bend / thick[:, None, None] + side * np.outer(1 / wide, np.sin(turn))[..., None]
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    return grid(points, normals)


def poster() -> Template:
    """A 50 x 70 cm print behind a white mat in an oak frame, hung on a wall."""
    width, height, mat, moulding = 0.40, 0.56, 0.05, 0.018
    sheet = 0.014

    def panel(half_w: float, half_h: float, z: float) -> list[tuple[float, float, float]]:
        return [(-half_w, -half_h, z), (half_w, -half_h, z), (half_w, half_h, z), (-half_w, half_h, z)]

    printed = flat(panel(width / 2, height / 2, sheet), [(0, 1), (1, 1), (1, 0), (0, 0)])
    # The mat's window is cut at 45 degrees, 2 mm in front of the sheet.
    window = ring(width / 2, height / 2, np.array([(0.0, sheet), (0.002, sheet + 0.002), (mat, sheet + 0.002)]))
    edge = np.array([(0.0, 0.015), (0.0, 0.0285), (0.0015, 0.030), (moulding - 0.0015, 0.030), (moulding, 0.0285)])
    frame = ring(width / 2 + mat, height / 2 + mat, np.vstack([edge, [(moulding, 0.0)]]))
    wall = flat(panel(3, 3, 0.0))
    azimuth, elevation, distance = math.radians(-20), math.radians(3), 1.85
    target = (0.0, -0.005, 0.0)
    eye = (
        target[0] + distance * math.cos(elevation) * math.sin(azimuth),
        target[1] + distance * math.sin(elevation),
        target[2] + distance * math.cos(elevation) * math.cos(azimuth),
    )
    return Template(
        parts={"frame": frame, "mat": window, "artwork": printed, "backdrop": wall},
        materials={
            "frame": material((0.36, 0.20, 0.095), roughness=0.45),
            "mat": material((0.86, 0.855, 0.84), roughness=0.95),
            "artwork": material((0.88, 0.88, 0.87), roughness=0.6),
            "backdrop": material((0.9, 0.9, 0.9), roughness=1.0),
        },
        eye=eye,
        target=target,
        fov_deg=28.0,
    )


def ring(half_w: float, half_h: float, profile: Array) -> Part:
    """A mitred rectangular frame: `profile` is (rows, 2) of (outward from the opening, depth z), flat-shaded."""
    result: Part | None = None
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        for (d0, z0), (d1, z1) in itertools.pairwise(profile):
            quad = flat(
                [
                    (x0 * (half_w + d0), y0 * (half_h + d0), z0),
                    (x0 * (half_w + d1), y0 * (half_h + d1), z1),
                    (x1 * (half_w + d1), y1 * (half_h + d1), z1),
                    (x1 * (half_w + d0), y1 * (half_h + d0), z0),
                ]
            )
            result = quad if result is None else result.joined(quad)
    assert result is not None
    return result


def material(linear_rgb: tuple[float, float, float], *, roughness: float) -> dict[str, Any]:
    """A dielectric glTF material."""
    return {
        "pbrMetallicRoughness": {
            "baseColorFactor": [*linear_rgb, 1.0],
            "metallicFactor": 0.0,
            "roughnessFactor": roughness,
        }
    }


def glb(template: Template) -> bytes:
    """The template as a GLB file: header, JSON chunk, binary chunk, each padded to four bytes."""
    binary = bytearray()
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []

    def add(array: NDArray[Any], kind: str, component: int, target: int, bounds: bool = False) -> int:
        data = array.tobytes()
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(data), "target": target})
        accessor: dict[str, Any] = {"bufferView": len(views) - 1, "componentType": component, "type": kind}
        accessor["count"] = array.size if kind == "SCALAR" else len(array)
        if bounds:
            accessor |= {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        accessors.append(accessor)
        binary.extend(data + b"\0" * (-len(data) % 4))
        return len(accessors) - 1

    def floats(array: Array) -> NDArray[np.float32]:
        return (np.round(array, 6) + 0.0).astype("<f4")

    meshes: list[dict[str, Any]] = []
    nodes: list[dict[str, Any]] = []
    materials: list[dict[str, Any]] = []
    for name, part in template.parts.items():
        if len(part.positions) >= 65536:
            raise ValueError(f"part {name} has {len(part.positions)} vertices; 16-bit indices allow 65535")
        attributes = {
            "POSITION": add(floats(part.positions), "VEC3", 5126, 34962, bounds=True),
            "NORMAL": add(floats(part.normals), "VEC3", 5126, 34962),
        }
        if part.uvs is not None:
            attributes["TEXCOORD_0"] = add(floats(part.uvs), "VEC2", 5126, 34962)
        indices = add(part.faces.astype("<u2"), "SCALAR", 5123, 34963)
        primitive = {"attributes": attributes, "indices": indices, "material": len(materials)}
        nodes.append({"name": name, "mesh": len(meshes)})
        meshes.append({"name": name, "primitives": [primitive]})
        materials.append({"name": name, **template.materials[name]})
    nodes.append({"name": "camera", "camera": 0, "matrix": look_at(template.eye, template.target)})
    document = {
        "asset": {"version": "2.0", "generator": "cotenant scripts/make_templates.py"},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(nodes)))}],
        "nodes": nodes,
        "meshes": meshes,
        "materials": materials,
        "cameras": [
            {
                "name": "camera",
                "type": "perspective",
                "perspective": {
                    "aspectRatio": 1.0,
                    "yfov": round(math.radians(template.fov_deg), 6),
                    "znear": 0.01,
                    "zfar": 100.0,
                },
            }
        ],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(binary), 0x004E4942) + binary
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


def look_at(eye: tuple[float, float, float], target: tuple[float, float, float]) -> list[float]:
    """The column-major matrix of a glTF camera (it looks along its -Z, Y is up)."""
    back = np.array(eye) - np.array(target)
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    up = np.cross(back, right)
    columns = [*right, 0.0, *up, 0.0, *back, 0.0, *eye, 1.0]
    return [round(float(value), 6) + 0.0 for value in columns]


TEMPLATES = {"mug": mug, "poster": poster}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file would change")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: the package's own)")
    arguments = parser.parse_args()
    stale = []
    for name, build in TEMPLATES.items():
        path, data = arguments.out / f"{name}.glb", glb(build())
        if arguments.check:
            if not path.is_file() or path.read_bytes() != data:
                stale.append(path.name)
            continue
        arguments.out.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        print(f"{path.name}: {len(data):,} bytes")
    if stale:
        print(f"{', '.join(stale)} differ from what this script makes; run it without --check", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
