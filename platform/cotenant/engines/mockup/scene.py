"""A warm scene: one template loaded into Mitsuba once; per request only the artwork's pixels change.

What always holds:
  * the same artwork, size, samples and seed give the same bytes, whatever was rendered before or between two of its
    chunks: a chunk is only rendered with the render's own artwork in the whole slot;
  * a render holds the light paths of one chunk, so its memory is bounded by the chunk, not by size x samples;
  * everything here runs on one thread, the one that made the scene: Dr.Jit's state belongs to it.

Nothing is loaded per request (repeated `load_dict` leaks, mitsuba3 issue 1890): cameras are kept per size, and when
more than `SIZES_KEPT` sizes come by, the oldest goes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from cotenant.engines.mockup import chunks, studio
from cotenant.engines.mockup.template import SLOT, Floats, Part, Plane, Template

SIZES_KEPT = 32
SHADOW_PX = 384
#: The shadow map reaches this many product radii to each side of the product.
SHADOW_REACH = 3.5
SHADOW_FLOOR = 0.02


class Cancelled(Exception):
    """The caller went away between two chunks."""


def _nothing() -> None:
    pass


class Scene:
    """One template, ready to render. `mi` is Mitsuba with its variant set.

    `shadow_map` is the one that an earlier scene of the same template baked: most of what making a scene costs.
    `paths_per_chunk` is for tests; by default it is what suits the variant.
    """

    def __init__(
        self,
        mi: ModuleType,
        template: Template,
        *,
        shadow_samples: int = 128,
        shadow_map: Floats | None = None,
        paths_per_chunk: int | None = None,
    ) -> None:
        self.template = template
        self._mi = mi
        self._scalar = mi.variant().startswith("scalar")
        self._sensors: OrderedDict[tuple[int, int], Any] = OrderedDict()
        width, height = self.slot_px(0, 0)
        blank = np.zeros((height, width, 3), dtype=np.float32)
        light = {"type": "envmap", "bitmap": mi.Bitmap(studio.environment(template)), "scale": 1.0}
        product = {f"part{i}": self._mesh(part) for i, part in enumerate(template.parts)}
        product[SLOT] = self._mesh(template.slot, blank)
        self._scene = mi.load_dict(
            {"type": "scene", "integrator": {"type": "path", "max_depth": 5, "hide_emitters": True}}
            | {"light": light}
            | product
        )
        self._params = mi.traverse(self._scene)
        keys = self._params.keys()  # iterating it gives pairs, for all that it looks like a dict
        self._slot_key = next(k for k in keys if k.startswith(SLOT) and k.endswith("base_color.data"))
        self._shown: Floats | None = None
        self._tracer = chunks.Tracer(mi, self._scene, paths_per_chunk)
        if shadow_map is None and template.backdrop is not None:
            shadow_map = self._bake_shadow(product, light, shadow_samples)
        self.shadow_map = shadow_map

    def slot_px(self, width: int, height: int) -> tuple[int, int]:
        """Pixels (width, height) of the artwork's texture for a render of that size."""
        return slot_px(self.template, width, height, scalar=self._scalar)

    def render(
        self,
        artwork: Floats,
        width: int,
        height: int,
        *,
        samples: int,
        seed: int,
        between: Callable[[], None] = _nothing,
    ) -> Floats:
        """(height, width, 4): linear light premultiplied by coverage, and coverage, without backdrop.

        `artwork` is (h, w, 3) linear, of `slot_px`; nobody may write to it meanwhile. `between` is called before every
        chunk: it may render this very scene, and raise Cancelled, which ends this render.
        """

        def before_chunk() -> None:
            between()
            self._show(artwork)

        try:
            return self._tracer.render(
                self._sensor(width, height), (width, height), samples=samples, seed=seed, between=before_chunk
            )
        finally:
            self._shown = None

    def shadow(self, width: int, height: int) -> Floats | None:
        """(height, width): how much of its light the backdrop keeps at each pixel, 1 where no shadow falls."""
        plane = self.template.backdrop
        if plane is None or self.shadow_map is None:
            return None
        camera = self.template.camera
        tangent = np.tan(np.radians(camera.fov_deg / 2)) / min(width, height)
        x = (2 * np.arange(width) + 1 - width) * tangent
        y = (height - 1 - 2 * np.arange(height)) * tangent
        rays = x[None, :, None] * camera.right + y[:, None, None] * camera.up - camera.back
        towards = rays @ plane.normal
        hits = np.where(towards < -1e-6, ((plane.point - camera.eye) @ plane.normal) / np.minimum(towards, -1e-6), 0.0)
        across, along = _axes(plane)
        origin = self._shadow_centre(plane)
        at = camera.eye + rays * hits[..., None] - origin
        reach = SHADOW_REACH * self.template.radius
        u, v = (at @ across / reach + 1) / 2, (at @ along / reach + 1) / 2
        kept = _bilinear(self.shadow_map, u * SHADOW_PX - 0.5, (1 - v) * SHADOW_PX - 0.5)
        return np.where(hits > 0, kept, 1.0).astype(np.float32)

    def drop(self) -> None:
        """Let go of everything the renderer holds for this scene. It can't be used afterwards."""
        self._sensors.clear()
        self._tracer.drop()
        del self._params, self._scene

    def _show(self, artwork: Floats) -> None:
        """Have this artwork in the slot, and no other. Told apart by identity, which holds while it is held here."""
        if self._shown is artwork:
            return
        self._shown = None
        self._params[self._slot_key] = self._mi.TensorXf(artwork)
        self._params.update()
        self._shown = artwork

    def _sensor(self, width: int, height: int) -> Any:
        key = (width, height)
        if key in self._sensors:
            self._sensors.move_to_end(key)
            return self._sensors[key]
        if len(self._sensors) >= SIZES_KEPT:
            self._sensors.popitem(last=False)
        camera = self.template.camera
        film = {"width": width, "height": height, "pixel_format": "rgba"}
        self._sensors[key] = self._mi.load_dict(
            {
                "type": "perspective",
                "fov": camera.fov_deg,
                "fov_axis": "smaller",
                "near_clip": 1e-3,
                "far_clip": 1e4,
                "to_world": self._look(camera.eye, camera.eye - camera.back, camera.up),
                "film": self._film(film),
                "sampler": {"type": "multijitter", "sample_count": 16},
            }
        )
        return self._sensors[key]

    def _film(self, extra: dict[str, Any]) -> dict[str, Any]:
        return {"type": "hdrfilm", "component_format": "float32", "rfilter": {"type": "box"}, **extra}

    def _look(self, eye: Any, target: Any, up: Any) -> Any:
        return self._mi.ScalarTransform4f().look_at(origin=list(eye), target=list(target), up=list(up))

    def _mesh(self, part: Part, texture: Floats | None = None) -> Any:
        mi = self._mi
        color: dict[str, Any] = {"type": "rgb", "value": list(part.base_color)}
        if texture is None and part.texture is not None and part.uvs is not None:
            color = {"type": "bitmap", "bitmap": mi.Bitmap(part.texture)}
        elif texture is not None:
            color = {"type": "bitmap", "bitmap": mi.Bitmap(texture), "raw": True, "wrap_mode": "clamp"}
        surface = {
            "type": "principled",
            "base_color": color,
            "roughness": max(part.roughness, 0.05),
            "metallic": part.metallic,
            "specular": 0.5,
        }
        properties = mi.Properties()
        properties["bsdf"] = mi.load_dict({"type": "twosided", "surface": surface})
        mesh = mi.Mesh(
            part.name,
            len(part.positions),
            len(part.faces),
            has_vertex_normals=True,
            has_vertex_texcoords=part.uvs is not None,
            props=properties,
        )
        params = mi.traverse(mesh)
        params["vertex_positions"] = part.positions.ravel()
        params["vertex_normals"] = part.normals.ravel()
        if part.uvs is not None:
            params["vertex_texcoords"] = part.uvs.ravel()
        params["faces"] = part.faces.ravel()
        params.update()
        return mesh

    def _shadow_centre(self, plane: Plane) -> Any:
        centre = self.template.centre
        return centre - ((centre - plane.point) @ plane.normal) * plane.normal

    def _bake_shadow(self, product: dict[str, Any], light: dict[str, Any], samples: int) -> Floats:
        """The shadow on the backdrop, as a map over the plane; it doesn't depend on artwork, size or seed.

        The plane is looked at from behind through a surface that passes all light on diffusely, so the product
        can't hide the very place where it stands; what is left of the light is the ratio with and without product.
        """
        plane = self.template.backdrop
        assert plane is not None
        mi, origin, reach = self._mi, self._shadow_centre(plane), SHADOW_REACH * self.template.radius
        _, along = _axes(plane)
        sheet = {
            "type": "rectangle",
            "to_world": self._look(origin, origin + plane.normal, along) @ mi.ScalarTransform4f().scale(reach * 4),
            "surface": {"type": "principledthin", "base_color": {"type": "rgb", "value": 1.0}, "diff_trans": 2.0}
            | {"roughness": 1.0, "spec_trans": 0.0, "eta": 1.0001},
        }

        def seen(shapes: dict[str, Any], size: int, spp: int) -> Floats:
            sensor = {
                "type": "orthographic",
                "to_world": self._look(origin - plane.normal * reach, origin, along)
                @ mi.ScalarTransform4f().scale([reach, reach, 1]),
                "near_clip": 1e-3 * reach,
                "far_clip": 10 * reach,
                "film": self._film({"width": size, "height": size, "pixel_format": "rgb"}),
                "sampler": {"type": "multijitter", "sample_count": spp},
            }
            world = {"type": "scene", "integrator": {"type": "path", "max_depth": 2}, "light": light, "sheet": sheet}
            image = np.array(mi.render(mi.load_dict(world | {"sensor": sensor} | shapes), spp=spp, seed=1))
            # Seen from behind, left and right have changed places.
            return np.asarray(image.mean(axis=2)[:, ::-1], dtype=np.float32)

        open_light = float(seen({}, 32, 1024).mean())
        lost = 1 - _smooth(seen(product, SHADOW_PX, samples)) / open_light
        # Less than this is noise, and would tint the background where no shadow falls.
        lost = np.clip((lost - SHADOW_FLOOR) / (1 - SHADOW_FLOOR), 0.0, 1.0)
        # Fade to no shadow at the map's edge, whatever noise is left there.
        edge = np.abs(np.linspace(-1, 1, SHADOW_PX))
        fade = np.clip((1 - np.maximum(edge[:, None], edge[None, :])) / 0.25, 0, 1)
        return np.asarray(1 - lost * fade, dtype=np.float32)


def slot_px(template: Template, width: int, height: int, *, scalar: bool) -> tuple[int, int]:
    """Pixels (width, height) of the artwork's texture for a render of that size: enough, and few sizes.

    The scalar back end takes one texture size only.
    """
    side = max(width, height)
    longest = 1024 if scalar else 512 if side <= 512 else 1024 if side <= 1024 else 2048
    aspect = template.aspect
    return (longest, max(1, round(longest / aspect))) if aspect >= 1 else (max(1, round(longest * aspect)), longest)


def _axes(plane: Plane) -> tuple[Any, Any]:
    """Two directions in the plane: across and along, so that (across, along, normal) is right-handed."""
    up = np.array([0.0, 1.0, 0.0]) if abs(plane.normal[1]) < 0.9 else np.array([0.0, 0.0, -1.0])
    across = np.cross(up, plane.normal)
    across /= np.linalg.norm(across)
    return across, np.cross(plane.normal, across)


def _smooth(values: Floats) -> Floats:
    kernel = np.array([1, 4, 6, 4, 1], dtype=np.float32) / 16
    for axis in (0, 1):
        padded = np.pad(values, [(2, 2) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        size = values.shape[axis]
        values = sum(weight * np.take(padded, range(i, i + size), axis=axis) for i, weight in enumerate(kernel))
    return values


def _bilinear(values: Floats, x: Any, y: Any) -> Any:
    """`values` at fractional columns x and rows y; 1 outside."""
    padded = np.pad(values, 1, constant_values=1.0)
    x, y = np.clip(x + 1, 0, values.shape[1]), np.clip(y + 1, 0, values.shape[0])
    column, row = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    fx, fy = x - column, y - row
    top = padded[row, column] * (1 - fx) + padded[row, column + 1] * fx
    bottom = padded[row + 1, column] * (1 - fx) + padded[row + 1, column + 1] * fx
    return top * (1 - fy) + bottom * fy
