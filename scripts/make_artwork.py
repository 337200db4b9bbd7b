"""Draws `demo/artwork.png`, the artwork that the demo puts on a mug: own design, no third-party parts."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE_PX = 1024
SUPERSAMPLING = 3
CREAM, CORAL, GOLD, TEAL, NAVY = "#fdf3e1", "#ef6f5e", "#f6b84b", "#2b8a8a", "#16324f"


def draw(size_px: int = SIZE_PX) -> Image.Image:
    """A sun over waves with the project's name, `size_px` square, RGB."""
    side = size_px * SUPERSAMPLING
    image = Image.new("RGB", (side, side), CREAM)
    pen = ImageDraw.Draw(image)
    centre, horizon = side / 2, side * 0.56
    for ray in range(24):
        angle = math.pi * ray / 12
        spread = math.pi / 48
        far = side * 0.46
        corners = [(centre + far * math.cos(angle + s), horizon + far * math.sin(angle + s)) for s in (-spread, spread)]
        pen.polygon([(centre, horizon), *corners], fill=GOLD)
    radius = side * 0.24
    pen.ellipse((centre - radius, horizon - radius, centre + radius, horizon + radius), fill=CORAL)
    for row, colour in enumerate((TEAL, "#237575", NAVY)):
        top = horizon + side * (0.03 + 0.075 * row)
        crest = side * 0.022
        points = [
            (x, top + crest * math.sin(2 * math.pi * (x / side * 5 + row * 0.35)))
            for x in range(0, side + 1, side // 96)
        ]
        pen.polygon([*points, (side, side), (0, side)], fill=colour)
    font = ImageFont.load_default(side * 0.115)
    pen.text((centre, side * 0.885), "cotenant", font=font, fill=CREAM, anchor="mm")
    pen.text((centre, side * 0.055), "SHARE THE SUN", font=ImageFont.load_default(side * 0.05), fill=NAVY, anchor="mm")
    return image.resize((size_px, size_px), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    target = Path(__file__).resolve().parent.parent / "demo" / "artwork.png"
    target.parent.mkdir(exist_ok=True)
    draw().save(target, optimize=True)
