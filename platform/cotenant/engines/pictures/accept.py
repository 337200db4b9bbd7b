"""Whether a caller wants the picture itself or JSON around it."""

from __future__ import annotations


def wants_json(accept: str) -> bool:
    """Whether an Accept header prefers JSON to an image: the higher q wins, then what it names, then the image."""
    best = {"json": (0.0, 0), "image": (0.0, 0)}
    for entry in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in entry.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if kind in ("application/json", "application/*"):
            best["json"] = max(best["json"], (quality, 2))
        elif kind.startswith("image/"):
            best["image"] = max(best["image"], (quality, 2))
        elif kind == "*/*":
            best = {name: max(rank, (quality, 1)) for name, rank in best.items()}
    return best["json"] > best["image"]
