"""From a platform file to what is simulated."""

from __future__ import annotations

from pathlib import Path

import pytest

from cotenant.config import load_platform
from cotenant.gpu.plan import plan
from cotenant.sim.model import SimPool
from cotenant.sim.scene import scene_parts
from cotenant.sim.stages import Image, Spot

pytestmark = pytest.mark.unit

FILE = """
workloads:
  mockups: {{mockup: {{templates: [mug]}}, gpu: {{vram_gib: 2}}, pools: [cheap]}}
environments:
  local:
    pools:
      cheap: {{accelerator: nvidia-l4, machine: g2-standard-8, spot: true, nodes: {{max: 3, spare: 1}}}}
      other: {{accelerator: nvidia-tesla-t4, machine: n1-standard-8, nodes: {{max: 3}}}}
{more}
"""


def pools(tmp_path: Path, more: str = "") -> tuple[SimPool, ...]:
    file = tmp_path / "platform.yaml"
    file.write_text(FILE.format(more=more))
    platform = load_platform(file, "local")
    return scene_parts(platform, plan(platform), image=Image.STREAM, spot=Spot(0.5, 60.0))[0]


def test_spot_pools_lose_nodes_and_others_do_not(tmp_path: Path) -> None:
    found = {pool.name: pool for pool in pools(tmp_path)}
    cheap = found["cheap"]
    assert (cheap.losses_per_h, cheap.dry_s, cheap.fallback, cheap.spare_nodes) == (0.5, 60.0, None, 1)
    assert all(pool.losses_per_h == 0 for name, pool in found.items() if name != "cheap")


def test_a_pool_with_the_same_gpus_that_is_no_spot_pool_stands_in(tmp_path: Path) -> None:
    found = pools(tmp_path, "      sure: {accelerator: nvidia-l4, machine: g2-standard-8, nodes: {max: 2}}")
    cheap = next(pool for pool in found if pool.name == "cheap")
    assert cheap.fallback is not None
    sure = found[cheap.fallback]
    assert (sure.name, sure.max_nodes, sure.losses_per_h) == ("sure", 2, 0.0)
    assert sure.usd_per_h > cheap.usd_per_h
