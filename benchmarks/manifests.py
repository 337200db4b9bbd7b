#!/usr/bin/env python3
"""How long it takes to render everything of every environment on GKE, rules included: aim under two seconds.

python benchmarks/manifests.py [PLATFORM_FILE]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "platform"))

from cotenant.cli.manifests import rendered  # noqa: E402


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "deployments/platform.yaml"
    runs = []
    for _ in range(5):
        begun, cpu = time.perf_counter(), time.process_time()
        folders = dict(rendered(file, (), "gke", None, None))
        runs.append((time.perf_counter() - begun, time.process_time() - cpu))
    again = dict(rendered(file, (), "gke", None, None))
    files = {f"{folder}/{path}": text for folder, texts in folders.items() for path, text in texts.items()}
    different = sum(text != again[folder][path] for folder, texts in folders.items() for path, text in texts.items())
    wall_s, cpu_s = sorted(runs)[len(runs) // 2]
    size = sum(map(len, files.values()))
    print(f"{len(folders)} environments, {len(files)} files, {size / 1e3:.0f} kB")
    print(f"median of {len(runs)}: {wall_s:.2f} s, {cpu_s:.2f} s of CPU; {different} files differ between two runs")


if __name__ == "__main__":
    main()
