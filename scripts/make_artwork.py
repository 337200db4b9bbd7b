"""Draws `demo/artwork.png`, the artwork that the demo puts on a mug: own design, no third-party parts."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

#: As wide to high as the mug's artwork slot, so that nothing is cropped.
SIZE_PX = (1024, 802)
SUPERSAMPLING = 3
CREAM, CORAL, GOLD, TEAL, NAVY = "#fdf3e1", "#ef6f5e", "#f6b84b", "#2b8a8a", "#16324f"


def draw(size_px: tuple[int, int] = SIZE_PX) -> Image.Image:
    """A sun over waves with the project's name, RGB."""
    width, height = (side * SUPERSAMPLING for side in size_px)
    image = Image.new("RGB", (width, height), CREAM)
    pen = ImageDraw.Draw(image)
    centre, horizon = width / 2, height * 0.56
    for ray in range(24):
        angle = math.pi * ray / 12
        spread = math.pi / 48
        far = height * 0.5
        corners = [(centre + far * math.cos(angle + s), horizon + far * math.sin(angle + s)) for s in (-spread, spread)]
        pen.polygon([(centre, horizon), *corners], fill=GOLD)
    radius = height * 0.25
    pen.ellipse((centre - radius, horizon - radius, centre + radius, horizon + radius), fill=CORAL)
    for row, colour in enumerate((TEAL, "#237575", NAVY)):
        top = horizon + height * (0.03 + 0.075 * row)
        crest = height * 0.022
        points = [
            (x, top + crest * math.sin(2 * math.pi * (x / width * 5 + row * 0.35)))
            for x in range(0, width + 1, width // 96)
        ]
        pen.polygon([*points, (width, height), (0, height)], fill=colour)
    pen.text((centre, height * 0.86), "cotenant", font=ImageFont.load_default(height * 0.13), fill=CREAM, anchor="mm")
    return image.resize(size_px, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    target = Path(__file__).resolve().parent.parent / "demo" / "artwork.png"
    target.parent.mkdir(exist_ok=True)
    draw().save(target, optimize=True)
