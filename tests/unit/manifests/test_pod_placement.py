"""Where pods may go: onto their pool's nodes and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from cotenant.config import Platform, load_platform
from cotenant.manifests.gke.placement import pod_placement

pytestmark = pytest.mark.unit

FILE = """
workloads: {mockups: {mockup: {}, gpu: {vram_gib: 2}}}
environments:
  prod:
    pools:
      front: {machine: e2-standard-4, nodes: {min: 1, max: 2}}
      shared: {accelerator: nvidia-l4, machine: g2-standard-8, spot: true, nodes: {max: 3}}
      steady: {accelerator: nvidia-l4, machine: g2-standard-8, nodes: {max: 3}}
      plain: {accelerator: cpu, vram_gib: 8, machine: e2-standard-8, nodes: {max: 1}}
    gke: {project: acme, region: us-central1, node_pools: POOLS}
"""
GPU = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def platform_of(tmp_path: Path, node_pools: str = "fixed") -> Platform:
    (tmp_path / "platform.yaml").write_text(FILE.replace("POOLS", node_pools))
    return load_platform(tmp_path / "platform.yaml", "prod")


def own(key: str, value: str) -> dict[str, str]:
    return {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}


def test_pods_of_an_on_demand_pool_select_it_by_its_label_and_tolerate_its_taint(tmp_path: Path) -> None:
    placed = pod_placement(platform_of(tmp_path), "steady")
    assert placed["nodeSelector"] == {"cotenant-pool": "prod-steady"}
    assert placed["tolerations"] == [own("cotenant-pool", "prod-steady"), GPU]


def test_the_doors_tolerate_no_gpu_node(tmp_path: Path) -> None:
    for node_pools in ("fixed", "auto"):
        placed = pod_placement(platform_of(tmp_path, node_pools), "front")
        assert placed["nodeSelector"] == {"cotenant-pool": "prod-front"}
        assert placed["tolerations"] == [own("cotenant-pool", "prod-front")]


def test_pods_of_a_spot_pool_go_by_its_compute_class(tmp_path: Path) -> None:
    placed = pod_placement(platform_of(tmp_path), "shared")
    assert placed["nodeSelector"] == {"cloud.google.com/compute-class": "prod-shared"}
    assert placed["tolerations"] == [own("cloud.google.com/compute-class", "prod-shared"), GPU]


def test_where_gke_makes_the_nodes_every_gpu_pool_has_a_class(tmp_path: Path) -> None:
    platform = platform_of(tmp_path, "auto")
    for pool in ("shared", "steady", "plain"):
        assert pod_placement(platform, pool)["nodeSelector"] == {"cloud.google.com/compute-class": f"prod-{pool}"}
    spot = own("cloud.google.com/gke-spot", "true")
    assert spot in pod_placement(platform, "shared")["tolerations"]
    assert spot not in pod_placement(platform, "steady")["tolerations"]


def test_a_virtual_gpu_needs_no_toleration_of_gpus(tmp_path: Path) -> None:
    assert GPU not in pod_placement(platform_of(tmp_path), "plain")["tolerations"]
