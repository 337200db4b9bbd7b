"""What is told of pools to whoever keeps nodes ready."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cotenant.config import load_platform
from cotenant.gpu.plan import plan
from cotenant.manifests.nodes import headroom_terms
from cotenant.manifests.pools import node_resources
from cotenant.scaling.headroom import PoolTerms

pytestmark = pytest.mark.unit

FILE = """
workloads: {mockups: {mockup: {}, gpu: {vram_gib: 2}, pools: [two], replicas: {per_node: 1}}}
environments:
  prod:
    pools:
      front: {machine: e2-standard-4, nodes: {min: 1, max: 2}}
      two: {accelerator: nvidia-l4, gpus_per_node: 2, nodes: {max: 3, spare: 1}}
      cut: {accelerator: nvidia-a100-80gb, mig: 1g.10gb, nodes: {max: 1}}
"""


def test_each_pool_has_its_bounds_and_a_bundle_that_takes_a_whole_node(tmp_path: Path) -> None:
    (tmp_path / "platform.yaml").write_text(FILE)
    platform = load_platform(tmp_path / "platform.yaml", "prod")
    terms = headroom_terms(platform, plan(platform))
    pools = {pool.name: pool for pool in map(PoolTerms.from_plain, json.loads(json.dumps(terms)))}
    assert set(pools) == {"front", "two", "cut"}
    front, two, cut = pools["front"], pools["two"], pools["cut"]
    assert (front.min, front.max, front.spare, dict(front.resources)) == (1, 2, 0, {"cotenant-pool-front": 1000.0})
    assert (two.min, two.max, two.spare) == (0, 3, 1)
    assert dict(two.resources) == {"cotenant-pool-two": 1000.0, "GPU": 2.0}
    assert cut.resources["GPU"] == 7
    for name, pool in pools.items():
        assert pool.resources[pool.marker] == node_resources(platform, name)[pool.marker]
