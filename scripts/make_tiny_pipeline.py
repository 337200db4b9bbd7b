"""Builds the bundled tiny diffusion pipeline (random weights: its pictures are noise) into a folder of your choice.

python scripts/make_tiny_pipeline.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from cotenant.engines.image.tiny import build

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} OUT")
    build(Path(sys.argv[1]))
