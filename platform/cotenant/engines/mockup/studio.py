"""The light: a soft studio painted as an environment map, so that every product is lit alike and well.

One map holds everything that shines: a key softbox up on the left, a weaker fill on the right, a strip behind for
an edge of light, an overhead, and a dim room. It is laid out by the camera's own axes, so a template brings no
lights. What lies behind the backdrop is painted over with the backdrop's own bounce, or the floor would leak light.
Pure arithmetic on arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cotenant.engines.mockup.template import Floats, Template, Vector

SIZE = (256, 128)
#: Linear light that a perfectly white slot sends back on average: exposure is set by it, so artwork is true to tone.
WHITE = 0.92
ROOM = 0.16
BOUNCE = 0.26


@dataclass(frozen=True)
class Softbox:
    """A lamp: where it hangs (right, up, towards the camera), half width and height (tangents), radiance, colour."""

    direction: tuple[float, float, float]
    half_size: tuple[float, float]
    radiance: float
    rgb: tuple[float, float, float] = (1.0, 1.0, 1.0)


SOFTBOXES = (
    Softbox((-1.0, 0.95, 0.75), (0.42, 0.55), 5.6, (1.0, 0.985, 0.96)),
    Softbox((1.25, 0.30, 0.55), (0.22, 0.80), 1.3, (0.96, 0.98, 1.0)),
    Softbox((0.15, 1.0, 0.05), (0.75, 0.55), 1.4),
    Softbox((0.9, 0.55, -1.0), (0.30, 0.65), 3.2),
)


def environment(template: Template) -> Floats:
    """(height, width, 3) linear radiance, by Mitsuba's convention: u = atan2(x, -z) / 2 pi, v = acos(y) / pi."""
    directions = _directions()
    camera = template.camera
    # Level the rig: a camera that looks down must not tip the lamps into the floor.
    back = camera.back * np.array([1.0, 0.0, 1.0])
    back = back / np.linalg.norm(back) if np.linalg.norm(back) > 1e-3 else camera.back
    up = np.array([0.0, 1.0, 0.0])
    right = np.cross(up, back)
    sky = 0.75 + 0.5 * np.clip(directions @ up, -0.5, 1.0)
    light = np.repeat((ROOM * sky)[..., None], 3, axis=2)
    for box in SOFTBOXES:
        axis = box.direction[0] * right + box.direction[1] * up + box.direction[2] * back
        light += _lit(directions, axis / np.linalg.norm(axis), up, box)
    if template.backdrop is not None:
        behind = _step(-(directions @ template.backdrop.normal), 0.0, 0.06)[..., None]
        light = light * (1 - behind) + BOUNCE * behind
    return (light * (WHITE / _brightness(light, directions, template))).astype(np.float32)


def _brightness(light: Vector, directions: Vector, template: Template) -> float:
    """Mean radiance of a white matt slot on the side that the camera sees, nothing in the light's way."""
    weights = np.sin((np.arange(SIZE[1]) + 0.5) / SIZE[1] * np.pi)[:, None] * (2 * np.pi**2 / (SIZE[0] * SIZE[1]))
    facing = template.slot.normals @ template.camera.back
    normals = template.slot.normals[facing > 0.2] if (facing > 0.2).any() else template.slot.normals
    cosines = np.clip(directions @ normals.T.astype(np.float64), 0.0, None).mean(axis=2)
    return float((light.mean(axis=2) * cosines * weights).sum() / np.pi)


def _directions() -> Vector:
    width, height = SIZE
    azimuth = (np.arange(width) + 0.5) / width * 2 * np.pi
    polar = (np.arange(height) + 0.5) / height * np.pi
    sin, cos = np.sin(polar)[:, None], np.cos(polar)[:, None]
    return np.stack([sin * np.sin(azimuth), np.broadcast_to(cos, (height, width)), -sin * np.cos(azimuth)], axis=2)


def _lit(directions: Vector, axis: Vector, up: Vector, box: Softbox) -> Vector:
    side = np.cross(up, axis)
    side /= max(float(np.linalg.norm(side)), 1e-6)
    depth = directions @ axis
    safe = np.where(depth > 0.05, depth, 0.05)
    across = np.abs(directions @ side) / safe / box.half_size[0]
    along = np.abs(directions @ np.cross(axis, side)) / safe / box.half_size[1]
    inside = _step(-np.maximum(across, along), -1.06, -0.94) * (depth > 0.05)
    return np.asarray(inside[..., None] * box.radiance * np.array(box.rgb))


def _step(values: NDArray[np.float64], low: float, high: float) -> Vector:
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3 - 2 * t))
