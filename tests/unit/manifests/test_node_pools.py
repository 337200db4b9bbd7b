"""Node pools and compute classes as data: what GKE's API would take, and what it would do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from google.cloud.container_v1 import NodePool
from google.protobuf import json_format

from cotenant.config import Platform, load_platform
from cotenant.errors import PlanError
from cotenant.manifests.gke.compute_class import compute_classes
from cotenant.manifests.gke.node_pools import node_pools
from cotenant.manifests.gke.placement import pod_placement

pytestmark = pytest.mark.unit

FILE = """
workloads: {mockups: {mockup: {}, gpu: {vram_gib: 2}}}
environments:
  prod:
    pools:
      front: {machine: e2-standard-4, nodes: {min: 1, max: 4}}
      shared: {accelerator: nvidia-l4, machine: g2-standard-8, spot: true, nodes: {min: 1, max: 3}}
      steady: {accelerator: nvidia-l4, machine: g2-standard-8, nodes: {max: 3}}
      sliced: {accelerator: nvidia-a100-80gb, machine: a2-ultragpu-1g, mig: 1g.10gb, nodes: {max: 2}}
      attached: {accelerator: nvidia-tesla-t4, machine: n1-standard-8, nodes: {max: 1}}
      newest: {accelerator: nvidia-rtx-pro-6000, machine: g4-standard-48, nodes: {max: 1}}
      plain: {accelerator: cpu, vram_gib: 8, machine: e2-standard-8, nodes: {max: 1}}
    gke: {project: acme, region: us-central1GKE}
"""


def platform_of(tmp_path: Path, gke: str = "", **changes: str) -> Platform:
    text = FILE.replace("GKE", gke)
    for old, new in changes.items():
        text = text.replace(old, new)
    (tmp_path / "platform.yaml").write_text(text)
    return load_platform(tmp_path / "platform.yaml", "prod")


def by_name(platform: Platform) -> dict[str, dict[str, Any]]:
    return {pool["name"]: pool for pool in node_pools(platform)}


@pytest.fixture
def pools(tmp_path: Path) -> dict[str, dict[str, Any]]:
    return by_name(platform_of(tmp_path))


def test_gkes_own_message_takes_every_field(pools: Mapping[str, dict[str, Any]]) -> None:
    for pool in pools.values():
        message = NodePool.pb(NodePool())
        json_format.ParseDict(pool, message)
        assert json_format.MessageToDict(message)["config"]["machineType"] == pool["config"]["machineType"]
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict({**pools["prod-front"], "initialNodes": 1}, NodePool.pb(NodePool()))


def test_each_pool_is_a_node_pool_and_a_spot_pool_is_two(pools: Mapping[str, dict[str, Any]]) -> None:
    assert list(pools) == [
        f"prod-{name}" for name in ("front", "shared", "shared-od", "steady", "sliced", "attached", "newest", "plain")
    ]
    spot, fallback = pools["prod-shared"], pools["prod-shared-od"]
    assert (spot["config"]["spot"], fallback["config"]["spot"]) == (True, False)
    assert (spot["autoscaling"]["totalMinNodeCount"], fallback["autoscaling"]["totalMinNodeCount"]) == (1, 0)
    assert spot["config"]["machineType"] == fallback["config"]["machineType"]
    assert spot["config"]["taints"] == fallback["config"]["taints"]


def test_a_pools_pods_fit_its_node_pools_and_no_others(tmp_path: Path) -> None:
    platform = platform_of(tmp_path)
    for name in platform.pools:
        placed = pod_placement(platform, name)
        fits = {
            pool["name"]
            for pool in node_pools(platform)
            if placed["nodeSelector"].items() <= pool["config"]["labels"].items()
            and all(_tolerated(taint, placed["tolerations"]) for taint in pool["config"]["taints"])
        }
        assert fits == {f"prod-{name}"} | ({f"prod-{name}-od"} if platform.pools[name].spot else set())
        tolerated = {
            pool["name"]
            for pool in node_pools(platform)
            if all(_tolerated(taint, placed["tolerations"]) for taint in pool["config"]["taints"])
        }
        assert tolerated == fits


def _tolerated(taint: Mapping[str, str], tolerations: list[dict[str, str]]) -> bool:
    return any(one["key"] == taint["key"] and one.get("value") == taint["value"] for one in tolerations)


def test_images_are_streamed_everywhere(pools: Mapping[str, dict[str, Any]]) -> None:
    for pool in pools.values():
        assert pool["config"]["gcfsConfig"] == {"enabled": True}
        assert pool["config"]["imageType"] == "COS_CONTAINERD"


def test_gpu_nodes_have_the_engines_image_on_a_disk_of_its_own(tmp_path: Path) -> None:
    disk = [{"diskImage": "projects/acme/global/images/cotenant-engines-1-2-0", "mode": "CONTAINER_IMAGE_CACHE"}]
    for name, pool in by_name(platform_of(tmp_path, ", tag: 1.2.0")).items():
        assert pool["config"].get("secondaryBootDisks") == (None if name in ("prod-front", "prod-plain") else disk)
    for pool in by_name(platform_of(tmp_path, ", baked: false")).values():
        assert "secondaryBootDisks" not in pool["config"]


def test_a_node_has_one_whole_gpu_with_the_latest_driver(pools: Mapping[str, dict[str, Any]]) -> None:
    accelerators = pools["prod-steady"]["config"]["accelerators"]
    assert accelerators == [
        {
            "acceleratorCount": "1",
            "acceleratorType": "nvidia-l4",
            "gpuDriverInstallationConfig": {"gpuDriverVersion": "LATEST"},
        }
    ]
    assert pools["prod-attached"]["config"]["accelerators"][0]["acceleratorType"] == "nvidia-tesla-t4"
    for name in ("prod-front", "prod-plain"):
        assert "accelerators" not in pools[name]["config"]


def test_mig_cuts_the_gpu(pools: Mapping[str, dict[str, Any]]) -> None:
    cut = {name: pool["config"].get("accelerators", [{}])[0].get("gpuPartitionSize") for name, pool in pools.items()}
    assert {name: size for name, size in cut.items() if size} == {"prod-sliced": "1g.10gb"}


def test_gke_shares_no_gpu(pools: Mapping[str, dict[str, Any]]) -> None:
    assert "gpuSharingConfig" not in str(pools)


def test_spot_nodes_leave_our_pods_most_of_the_notice(pools: Mapping[str, dict[str, Any]]) -> None:
    kubelet = pools["prod-shared"]["config"]["kubeletConfig"]
    assert kubelet["shutdownGracePeriodSeconds"] == 30
    assert kubelet["shutdownGracePeriodCriticalPodsSeconds"] == 5
    # GKE refuses the setting on other nodes.
    assert "shutdownGracePeriodSeconds" not in pools["prod-shared-od"]["config"]["kubeletConfig"]


def test_a_gpu_node_is_upgraded_without_a_second_one(pools: Mapping[str, dict[str, Any]]) -> None:
    assert pools["prod-steady"]["upgradeSettings"] == {"strategy": "SURGE", "maxSurge": 0, "maxUnavailable": 1}
    assert pools["prod-front"]["upgradeSettings"] == {"strategy": "SURGE", "maxSurge": 1, "maxUnavailable": 0}


def test_a_gpu_is_taken_in_any_zone_and_doors_are_spread(tmp_path: Path) -> None:
    pools = by_name(platform_of(tmp_path, ", zones: [us-central1-a, us-central1-c]"))
    assert pools["prod-shared"]["autoscaling"]["locationPolicy"] == "ANY"
    assert pools["prod-shared"]["locations"] == ["us-central1-a", "us-central1-c"]
    assert pools["prod-front"]["autoscaling"]["locationPolicy"] == "BALANCED"
    assert "locations" not in pools["prod-front"]


def test_nodes_are_shielded_private_and_nobody_of_importance(pools: Mapping[str, dict[str, Any]]) -> None:
    for pool in pools.values():
        config = pool["config"]
        assert config["shieldedInstanceConfig"] == {"enableSecureBoot": True, "enableIntegrityMonitoring": True}
        assert config["workloadMetadataConfig"] == {"mode": "GKE_METADATA"}
        assert config["metadata"] == {"disable-legacy-endpoints": "true"}
        assert config["serviceAccount"] == "cotenant-nodes@acme.iam.gserviceaccount.com"
        assert pool["networkConfig"] == {"enablePrivateNodes": True}


def test_a_machine_has_a_disk_that_it_takes(pools: Mapping[str, dict[str, Any]]) -> None:
    disks = {name: pool["config"]["diskType"] for name, pool in pools.items()}
    assert disks.pop("prod-newest") == "hyperdisk-balanced"
    assert set(disks.values()) == {"pd-balanced"}


def test_a_process_out_of_memory_ends_alone(pools: Mapping[str, dict[str, Any]]) -> None:
    assert all(pool["config"]["kubeletConfig"]["singleProcessOomKill"] for pool in pools.values())


def test_the_definitions_digest_knows_all_but_the_number_of_nodes(tmp_path: Path) -> None:
    def digests(**changes: str) -> dict[str, str]:
        pools = by_name(platform_of(tmp_path, **changes))
        return {name: pool["config"]["resourceLabels"]["cotenant_definition"] for name, pool in pools.items()}

    before = digests()
    assert digests(**{"max: 4": "max: 5"}) == before
    changed = digests(**{"g2-standard-8, spot": "g2-standard-12, spot"})
    assert {name for name in before if before[name] != changed[name]} == {"prod-shared", "prod-shared-od"}


def test_a_pool_without_machine_or_with_too_long_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="pool front names no machine type, and a node pool needs one"):
        node_pools(platform_of(tmp_path, **{"machine: e2-standard-4, ": ""}))
    long = "x" * 33
    with pytest.raises(PlanError, match="whose name has 41 characters where GKE allows 40"):
        node_pools(platform_of(tmp_path, shared=long))


# --- compute classes ----------------------------------------------------------------------------------------

#: Fields of a ComputeClass, as read in GKE's reference of it. `[]` is a list of such, `None` any plain value.
_RULE: dict[str, Any] = {
    "machineType": None,
    "spot": None,
    "nodepools": None,
    "gpu": {"type": None, "count": None, "driverVersion": None},
    "storage": {
        "bootDiskType": None,
        "bootDiskSize": None,
        "secondaryBootDisks": [{"diskImageName": None, "project": None, "mode": None}],
    },
    "location": {"zones": None},
}
FIELDS: dict[str, Any] = {
    "priorities": [_RULE],
    "activeMigration": {"optimizeRulePriority": None},
    "autoscalingPolicy": {
        "consolidationDelayMinutes": None,
        "consolidationThreshold": None,
        "gpuConsolidationThreshold": None,
    },
    "nodePoolAutoCreation": {"enabled": None},
    "nodePoolConfig": {
        "serviceAccount": None,
        "imageType": None,
        "imageStreaming": {"enabled": None},
        "gvnic": {"enabled": None},
        "autoRepair": None,
        "autoUpgrade": None,
        "nodeLabels": None,
    },
    "whenUnsatisfiable": None,
}


def strange(value: Any, fields: Any, path: str = "spec") -> Iterator[str]:
    if isinstance(fields, list):
        for each in value:
            yield from strange(each, fields[0], path)
    elif fields is not None:
        for key, inner in value.items():
            if key not in fields:
                yield f"{path}.{key}"
            else:
                yield from strange(inner, fields[key], f"{path}.{key}")


def test_a_spot_pools_class_takes_spot_nodes_then_on_demand_ones(tmp_path: Path) -> None:
    (only,) = compute_classes(platform_of(tmp_path))
    assert (only["metadata"]["name"], "namespace" in only["metadata"]) == ("prod-shared", False)
    spec = only["spec"]
    assert spec["priorities"] == [{"nodepools": ["prod-shared"]}, {"nodepools": ["prod-shared-od"]}]
    assert spec["nodePoolAutoCreation"] == {"enabled": False}
    assert spec["activeMigration"] == {"optimizeRulePriority": True}
    assert spec["whenUnsatisfiable"] == "DoNotScaleUp"
    assert list(strange(spec, FIELDS)) == []


def test_a_class_and_its_node_pools_know_each_other(tmp_path: Path) -> None:
    platform = platform_of(tmp_path)
    pools = by_name(platform)
    for each in compute_classes(platform):
        name = each["metadata"]["name"]
        listed = [pool for rule in each["spec"]["priorities"] for pool in rule["nodepools"]]
        carrying = [n for n, p in pools.items() if p["config"]["labels"].get("cloud.google.com/compute-class") == name]
        assert listed == carrying
        for pool in listed:
            assert pools[pool]["config"]["taints"] == [
                {"key": "cloud.google.com/compute-class", "value": name, "effect": "NO_SCHEDULE"}
            ]


def test_with_auto_pools_gke_makes_all_but_the_doors_nodes(tmp_path: Path) -> None:
    gke = ", node_pools: auto, tag: 1.2.0, zones: [us-central1-a]"
    platform = platform_of(tmp_path, gke, **{", mig: 1g.10gb": ""})
    assert list(by_name(platform)) == ["prod-front"]
    classes = {each["metadata"]["name"]: each["spec"] for each in compute_classes(platform)}
    assert set(classes) == {f"prod-{name}" for name in platform.pools if name != "front"}
    spot, on_demand = classes["prod-shared"]["priorities"]
    assert on_demand == {**spot, "spot": False}
    assert spot == {
        "machineType": "g2-standard-8",
        "spot": True,
        "gpu": {"type": "nvidia-l4", "count": 1, "driverVersion": "latest"},
        "storage": {
            "bootDiskType": "pd-balanced",
            "bootDiskSize": 200,
            "secondaryBootDisks": [
                {"diskImageName": "cotenant-engines-1-2-0", "project": "acme", "mode": "CONTAINER_IMAGE_CACHE"}
            ],
        },
        "location": {"zones": ["us-central1-a"]},
    }
    assert [rule["spot"] for rule in classes["prod-steady"]["priorities"]] == [False]
    for spec in classes.values():
        assert list(strange(spec, FIELDS)) == []
        assert spec["nodePoolConfig"]["imageStreaming"] == {"enabled": True}
        assert spec["nodePoolConfig"]["serviceAccount"] == "cotenant-nodes@acme.iam.gserviceaccount.com"


def test_auto_pools_cannot_be_cut_by_mig(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"pool sliced has MIG slices 1g\.10gb, which a compute class can't ask for"):
        compute_classes(platform_of(tmp_path, ", node_pools: auto"))
