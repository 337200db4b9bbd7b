"""The objects of an environment: valid by their schemas, and right by what they mean for each other."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cotenant.config import Platform, load_platform
from cotenant.errors import PlanError
from cotenant.gpu.plan import Plan, plan
from cotenant.manifests.environment import cluster_objects, environment_files
from cotenant.manifests.kubernetes.sizing import allocatable
from cotenant.manifests.resolved import platform_file
from cotenant.manifests.rules import broken, cpu_shortages, pods_of, requested, upgrade_room
from tests.contracts.manifest_schemas import problems

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "deployments/platform.yaml"
ENVIRONMENTS = ("dev", "staging", "prod")

#: What the shipped file doesn't use: MIG, several GPUs a node, a bound by node, pins, every way to keep spare nodes.
WIDE = """
name: studio
workloads:
  mugs:   {{mockup: {{}}, gpu: {{vram_gib: 2}}, pools: [whole], replicas: {{min: 1, max: 6, per_node: 2}}}}
  words:  {{llm: {{model: smollm2-135m}}, gpu: {{vram_gib: 4}}, pools: [slices], replicas: {{min: 0, max: 9}}}}
jobs: {{store: gs://acme-studio/results, ingresses: {ingresses}}}
gateway: {{host: 0.0.0.0, port: 8080}}
environments:
  live:
    pools:
      doors:  {{machine: e2-standard-8, nodes: {{min: 3, max: 6}}}}
      whole:  {{accelerator: nvidia-l4, machine: g2-standard-24, gpus_per_node: 2, nodes: {{min: 2, max: 4, spare: 2}}}}
      slices: {{accelerator: nvidia-tesla-a100, machine: a2-highgpu-1g, mig: 1g.5gb, spot: true,
                nodes: {{min: 0, max: 2, spare: 1}}}}
    gke: {{project: acme-prod, region: europe-west4, {gke}}}
"""


def shipped(environment: str) -> tuple[Platform, Plan]:
    platform = load_platform(SHIPPED, environment)
    return platform, plan(platform)


def wide(folder: Path, gke: str = "zones: [europe-west4-a]", ingresses: int = 1) -> tuple[Platform, Plan]:
    file = folder / "platform.yaml"
    file.write_text(WIDE.format(gke=gke, ingresses=ingresses))
    platform = load_platform(file, "live")
    return platform, plan(platform)


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [each for each in objects if each["kind"] == kind]


def cluster(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (service,) = of_kind(objects, "RayService")
    found: dict[str, Any] = service["spec"]["rayClusterConfig"]
    return found


def group(objects: list[dict[str, Any]], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(g for g in cluster(objects)["workerGroupSpecs"] if g["groupName"] == name)
    return found


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_object_of_the_shipped_environments_is_valid_and_breaks_no_rule(environment: str) -> None:
    platform, the_plan = shipped(environment)
    objects = cluster_objects(platform, the_plan)
    assert [line for each in objects for line in problems(each)] == []
    assert broken(objects, platform, the_plan) == []
    assert cpu_shortages(platform, the_plan) == []


@pytest.mark.parametrize(
    "gke",
    [
        "zones: [europe-west4-a]",
        "spare_by: nodes",
        "spare_by: nodes, version: '1.34'",
        "domain: studio.example, upgrade: incremental",
        "upgrade: none, redis: 'redis.internal:6379', tag: v7",
        f"digests: {{engines: 'sha256:{'a' * 64}', doors: 'sha256:{'b' * 64}'}}",
    ],
)
def test_mig_several_gpus_and_every_choice_of_the_gke_section_are_valid_and_break_no_rule(
    gke: str, tmp_path: Path
) -> None:
    platform, the_plan = wide(tmp_path, gke)
    objects = cluster_objects(platform, the_plan)
    assert [line for each in objects for line in problems(each)] == []
    assert broken(objects, platform, the_plan) == []


def test_where_gke_makes_the_nodes_pods_ask_for_a_compute_class(tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    text = WIDE.replace(" mig: 1g.5gb,", "").format(gke="node_pools: auto, spare_by: nodes", ingresses=1)
    file.write_text(text)
    platform = load_platform(file, "live")
    the_plan = plan(platform)
    objects = cluster_objects(platform, the_plan)
    assert [line for each in objects for line in problems(each)] == []
    assert broken(objects, platform, the_plan) == []
    classes = {each["metadata"]["name"] for each in of_kind(objects, "ComputeClass")}
    assert classes == {"live-whole", "live-slices"}
    selected = group(objects, "whole")["template"]["spec"]["nodeSelector"]
    assert selected == {"cloud.google.com/compute-class": "live-whole"}


def test_each_mig_slice_is_a_pod_of_its_own_and_a_node_with_several_gpus_is_one(tmp_path: Path) -> None:
    objects = cluster_objects(*wide(tmp_path))
    slices, whole = group(objects, "slices"), group(objects, "whole")
    assert (slices["minReplicas"], slices["maxReplicas"]) == (0, 14)
    assert requested(slices["template"]["spec"])["nvidia.com/gpu"] == 1
    assert (whole["minReplicas"], whole["maxReplicas"]) == (2, 4)
    assert requested(whole["template"]["spec"])["nvidia.com/gpu"] == 2
    assert whole["resources"] == {"cotenant-pool-whole": "1000", "cotenant-spread-mugs": "2"}


def test_the_scaler_hears_of_mig_slices_as_nodes_and_of_spare_ones_only_if_they_are_its_own(tmp_path: Path) -> None:
    def pools(gke: str) -> dict[str, Any]:
        config = yaml.safe_load(
            of_kind(cluster_objects(*wide(tmp_path, gke)), "RayService")[0]["spec"]["serveConfigV2"]
        )
        told = next(a for a in config["applications"] if a["name"] == "gateway")["deployments"][0]["user_config"]
        return {pool["name"]: pool for pool in told["scaling"]["pools"]}

    by_ray, by_nodes = pools("spare_by: ray"), pools("spare_by: nodes")
    assert (by_ray["slices"]["max"], by_ray["slices"]["spare"], by_ray["slices"]["resources"]["GPU"]) == (14, 7, 1.0)
    assert (by_ray["whole"]["max"], by_ray["whole"]["spare"], by_ray["whole"]["resources"]["GPU"]) == (4, 2, 2.0)
    assert by_nodes["slices"]["spare"] == by_nodes["whole"]["spare"] == 0


def test_spare_nodes_are_kept_by_buffers_where_the_cluster_knows_them_and_by_placeholders_before(
    tmp_path: Path,
) -> None:
    def kinds(gke: str) -> set[str]:
        return {each["kind"] for each in cluster_objects(*wide(tmp_path, gke))}

    assert not {"CapacityBuffer", "Deployment"} & kinds("spare_by: ray")
    assert {"CapacityBuffer", "PodTemplate"} <= kinds("spare_by: nodes")
    assert "CapacityBuffer" not in kinds("spare_by: nodes, version: 1.35.2-gke.1841999")
    objects = cluster_objects(*wide(tmp_path, "spare_by: nodes, version: '1.34'"))
    (slices,) = [each for each in of_kind(objects, "Deployment") if each["metadata"]["name"] == "spare-slices"]
    spec = slices["spec"]["template"]["spec"]
    assert slices["spec"]["replicas"] == 7
    assert requested(spec) == requested(group(objects, "slices")["template"]["spec"])
    assert spec["priorityClassName"] == "studio-live-spare"
    (lowest,) = [each for each in of_kind(objects, "PriorityClass") if each["metadata"]["name"] == "studio-live-spare"]
    assert (lowest["value"], lowest["preemptionPolicy"]) == (-10, "Never")


def test_the_head_runs_no_workload_and_has_what_the_operator_needs() -> None:
    spec = cluster(cluster_objects(*shipped("prod")))
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["authOptions"] == {"mode": "token", "secretName": "cotenant-ray-token"}
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"


def test_only_the_doors_get_keys_and_nothing_holds_a_secret() -> None:
    objects = cluster_objects(*shipped("prod"))
    env = {
        where: {each["name"] for each in pod["containers"][0].get("env", []) if "valueFrom" in each}
        for where, pod in pods_of(objects)
    }
    assert env["group front"] == {"COTENANT_API_KEYS", "COTENANT_WEBHOOK_SECRETS"}
    assert env["group shared"] == env["head"] == set()
    assert not of_kind(objects, "Secret")


def test_the_door_is_outside_only_with_a_domain_and_then_with_tls(tmp_path: Path) -> None:
    inside = cluster_objects(*wide(tmp_path))
    assert not of_kind(inside, "Gateway")
    (policy,) = [each for each in of_kind(inside, "NetworkPolicy") if each["metadata"]["name"] == "http-door"]
    assert policy["spec"]["ingress"][0]["from"] == [{"podSelector": {}}]
    outside = cluster_objects(*wide(tmp_path, "domain: studio.example"))
    (gateway,) = of_kind(outside, "Gateway")
    assert gateway["metadata"]["annotations"] == {"networking.gke.io/certmap": "studio-live-http"}
    routes = {each["metadata"]["name"]: each["spec"] for each in of_kind(outside, "HTTPRoute")}
    assert routes["http"]["parentRefs"] == [{"name": "http", "sectionName": "https"}]
    assert routes["http"]["rules"][0]["backendRefs"] == [{"name": "http", "port": 8080}]
    assert routes["http-to-https"]["rules"][0]["filters"][0]["type"] == "RequestRedirect"
    (backend,) = of_kind(outside, "GCPBackendPolicy")
    assert backend["spec"]["default"]["timeoutSec"] == 330


def test_what_the_file_names_elsewhere_may_be_reached_from_those_who_need_it(tmp_path: Path) -> None:
    def egress(gke: str, spill: str = "") -> dict[str, list[Any]]:
        file = tmp_path / "platform.yaml"
        text = WIDE.format(gke=gke, ingresses=1)
        file.write_text(
            text.replace("pools: [whole],", f"pools: [whole], spill: {{url: '{spill}'}},") if spill else text
        )
        platform = load_platform(file, "live")
        policies = of_kind(cluster_objects(platform, plan(platform)), "NetworkPolicy")
        return {each["metadata"]["name"]: each["spec"].get("egress", []) for each in policies}

    redis = {"to": [{"ipBlock": {"cidr": "10.0.0.3/32"}}], "ports": [{"protocol": "TCP", "port": 6379}]}
    assert redis in egress("redis: '10.0.0.3:6379'")["operator"]
    assert egress("redis: 'redis.internal:6380'")["operator"][-1] == {"ports": [{"protocol": "TCP", "port": 6380}]}
    assert "spill" not in egress("baked: true")
    private = egress("baked: true", "http://10.1.2.3:9000")["spill"]
    assert private == [{"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [{"protocol": "TCP", "port": 9000}]}]
    assert egress("baked: true", "https://mugs.a.run.app")["spill"] == [{"ports": [{"protocol": "TCP", "port": 443}]}]


def test_googles_collector_needs_no_key_for_the_gateways_metrics() -> None:
    (service,) = of_kind(cluster_objects(*shipped("prod")), "RayService")
    gateway = next(
        a for a in yaml.safe_load(service["spec"]["serveConfigV2"])["applications"] if a["name"] == "gateway"
    )
    assert gateway["args"]["gateway"]["open_metrics"] is True


def test_the_head_goes_after_its_workers_and_a_load_balancer_leaves_them_the_time(tmp_path: Path) -> None:
    objects = cluster_objects(*wide(tmp_path, "domain: studio.example"))
    head = cluster(objects)["headGroupSpec"]["template"]["spec"]
    assert head["terminationGracePeriodSeconds"] == 3660
    assert "--head" in head["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    (backend,) = of_kind(objects, "GCPBackendPolicy")
    assert backend["spec"]["default"]["connectionDraining"]["drainingTimeoutSec"] == 325


def test_a_pool_that_cannot_hold_two_versions_is_warned_of(tmp_path: Path) -> None:
    assert upgrade_room(*shipped("dev")) == upgrade_room(*shipped("prod")) == []
    file = tmp_path / "platform.yaml"
    file.write_text(WIDE.format(gke="", ingresses=1).replace("{min: 3, max: 6}", "{min: 3, max: 5}"))
    platform = load_platform(file, "live")
    (warning,) = upgrade_room(platform, plan(platform))
    assert "pool doors has 3 nodes at the least and 5 at the most" in warning
    file.write_text(file.read_text().replace("region: europe-west4,", "region: europe-west4, upgrade: none,"))
    platform = load_platform(file, "live")
    assert upgrade_room(platform, plan(platform)) == []


def test_metrics_and_docs_are_not_routed_from_outside(tmp_path: Path) -> None:
    outside = cluster_objects(*wide(tmp_path, "domain: studio.example"))
    (route,) = [each for each in of_kind(outside, "HTTPRoute") if each["metadata"]["name"] == "http"]
    assert [match["path"]["value"] for match in route["spec"]["rules"][0]["matches"]] == ["/v1", "/healthz"]


def test_groups_that_always_have_two_pods_keep_all_but_one_of_them(tmp_path: Path) -> None:
    budgets = {
        each["spec"]["selector"]["matchLabels"]["ray.io/group"]: each["spec"]["minAvailable"]
        for each in of_kind(cluster_objects(*wide(tmp_path)), "PodDisruptionBudget")
    }
    assert budgets == {"doors": 2, "whole": 1}


def test_pods_may_take_as_long_to_go_as_the_longest_job_and_the_doors_as_their_drain(tmp_path: Path) -> None:
    with_jobs = cluster_objects(*wide(tmp_path))
    assert group(with_jobs, "whole")["template"]["spec"]["terminationGracePeriodSeconds"] == 3630
    assert group(with_jobs, "doors")["template"]["spec"]["terminationGracePeriodSeconds"] == 355
    hook = group(with_jobs, "whole")["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert hook == ["python", "-m", "deployments.leave", "--within", "3600"]
    without = cluster_objects(*wide(tmp_path, ingresses=0))
    assert group(without, "whole")["template"]["spec"]["terminationGracePeriodSeconds"] == 330


def test_mps_starts_with_the_container_where_a_pool_asks_for_it(tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(
        WIDE.format(gke="zones: [europe-west4-a]", ingresses=1).replace(
            "gpus_per_node: 2", "gpus_per_node: 2, mps: true"
        )
    )
    platform = load_platform(file, "live")
    objects = cluster_objects(platform, plan(platform))
    container = group(objects, "whole")["template"]["spec"]["containers"][0]
    assert "nvidia-cuda-mps-control -d" in container["lifecycle"]["postStart"]["exec"]["command"][-1]
    assert "CUDA_MPS_PIPE_DIRECTORY" in {each["name"] for each in container["env"]}
    assert "postStart" not in group(objects, "slices")["template"]["spec"]["containers"][0]["lifecycle"]


def test_doors_are_kept_apart_where_the_front_pool_has_room_for_the_next_version(tmp_path: Path) -> None:
    def per_node(platform: Platform, the_plan: Plan) -> Any:
        (service,) = of_kind(cluster_objects(platform, the_plan), "RayService")
        applications = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
        gateway = next(each for each in applications if each["name"] == "gateway")
        return gateway["deployments"][0].get("max_replicas_per_node")

    assert per_node(*shipped("prod")) == 1
    assert per_node(*shipped("dev")) is None


def test_gke_keeps_back_what_its_documentation_says() -> None:
    # Its own example: of an e2-standard-4 with 16 GiB, 3.92 CPU are left.
    room = allocatable(4, 16)
    assert room.cpus == pytest.approx(3.92)
    assert room.gib == pytest.approx(16 - (1.0 + 0.8 + 0.8) - 100 / 1024)
    assert allocatable(1, 2).gib == pytest.approx(2 - 0.5 - 100 / 1024)


# What the rules are for: each of them finds the mistake that it is named after.


def spoilt(change: Callable[[list[dict[str, Any]]], None]) -> list[str]:
    platform, the_plan = shipped("prod")
    objects = copy.deepcopy(cluster_objects(platform, the_plan))
    change(objects)
    return broken(objects, platform, the_plan)


def _container(objects: list[dict[str, Any]], name: str = "shared") -> dict[str, Any]:
    found: dict[str, Any] = group(objects, name)["template"]["spec"]["containers"][0]
    return found


def _reserve(objects: list[dict[str, Any]], old: str, new: str) -> None:
    spec = of_kind(objects, "RayService")[0]["spec"]
    assert old in spec["serveConfigV2"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace(old, new)


MISTAKES: dict[str, tuple[Callable[[list[dict[str, Any]]], None], str]] = {
    "the front group may be empty": (lambda o: group(o, "front").update(minReplicas=0), "may be empty"),
    "the head takes work": (
        lambda o: cluster(o)["headGroupSpec"]["rayStartParams"].pop("num-cpus"),
        "head offers CPU cores",
    ),
    "another pool's nodes": (
        lambda o: group(o, "shared")["template"]["spec"].update(nodeSelector={"cotenant-pool": "dev-shared"}),
        "does not select the nodes of pool prod-shared",
    ),
    "a taint that isn't tolerated": (
        lambda o: group(o, "shared")["template"]["spec"].update(tolerations=[]),
        "does not tolerate the taint",
    ),
    "two groups offer one pool": (
        lambda o: group(o, "front")["resources"].update({"cotenant-pool-shared": "1000"}),
        "is offered by front, shared",
    ),
    "a replica without its pool": (
        lambda o: _reserve(o, "cotenant-pool-shared: 0.001", "cotenant-pool-front: 0.001"),
        "and belongs in shared",
    ),
    "a share that isn't the plan's": (lambda o: _reserve(o, "num_gpus: 0.1352", "num_gpus: 0.1"), "where the plan has"),
    "a share below the budget": (lambda o: _reserve(o, "num_gpus: 0.1352", "num_gpus: 0.1"), "its replicas hold 2.00"),
    "a pool's resource that runs out": (
        lambda o: _reserve(o, "cotenant-pool-shared: 0.001", "cotenant-pool-shared: 500"),
        "which would run out",
    ),
    "a pod larger than its node": (
        lambda o: _container(o)["resources"]["requests"].update(cpu="8"),
        "where a g2-standard-8 has 7.91",
    ),
    "head and doors too large for one node": (
        lambda o: _container(o, "front")["resources"]["requests"].update(memory="30Gi"),
        "pods of front request",
    ),
    "a node's GPU left over": (
        lambda o: _container(o)["resources"]["requests"].pop("nvidia.com/gpu"),
        "request 0 GPUs of a node that has 1",
    ),
    "other bounds than the node pool's": (lambda o: group(o, "shared").update(maxReplicas=99), "its pool other nodes"),
    "killed before the job ends": (
        lambda o: group(o, "shared")["template"]["spec"].update(terminationGracePeriodSeconds=300),
        "is killed after 300 s",
    ),
    "not drained": (lambda o: _container(o).pop("lifecycle"), "is not drained"),
    "a head that goes first": (
        lambda o: cluster(o)["headGroupSpec"]["template"]["spec"].update(terminationGracePeriodSeconds=30),
        "the head goes before its workers",
    ),
    "privileged": (lambda o: _container(o)["securityContext"].update(privileged=True), "rights that it does not need"),
    "the node's network": (
        lambda o: group(o, "shared")["template"]["spec"].update(hostNetwork=True),
        "has hostNetwork",
    ),
    "the node's disk": (
        lambda o: group(o, "shared")["template"]["spec"]["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
        "mounts x from its node",
    ),
    "no limits": (lambda o: _container(o)["resources"].pop("limits"), "has no limits"),
    "latest": (
        lambda o: _container(o).update(image="us-central1-docker.pkg.dev/acme/cotenant/engines:latest"),
        "names no version",
    ),
    "an image of another region": (
        lambda o: _container(o).update(image="europe-docker.pkg.dev/acme/cotenant/engines:1"),
        "comes from elsewhere",
    ),
    "a key in the manifest": (
        lambda o: _container(o)["env"].append({"name": "COTENANT_API_KEYS", "value": "acme:k"}),
        "has its value in the manifest",
    ),
    "a secret among the objects": (
        lambda o: o.append({"kind": "Secret", "metadata": {"name": "keys"}}),
        "Secret keys would hold",
    ),
    "what the operator refuses": (
        lambda o: of_kind(o, "RayService")[0]["spec"]["upgradeStrategy"].update(type="Rolling"),
        "upgradeStrategy.type 'Rolling'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=list(MISTAKES))
def test_a_rule_finds(mistake: str) -> None:
    change, said = MISTAKES[mistake]
    found = spoilt(change)
    assert any(said in line for line in found), found


# What can't work on a cluster is refused with what to do about it.


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("gs://acme-studio/results", "./results", "write e.g. gs://acme-prod-studio-live/results"),
        ("host: 0.0.0.0", "host: 127.0.0.1", "on a cluster write host: 0.0.0.0"),
        ("nodes: {{min: 3, max: 6}}", "nodes: {{min: 0, max: 6}}", "write nodes: {min: 1}"),
        ("doors:  {{machine: e2-standard-8, nodes: {{min: 3, max: 6}}}}", "", "no pool for the front doors"),
        ("machine: e2-standard-8", "machine: e2-standard-2", "take a larger machine"),
        ("machine: e2-standard-8", "machine: c4-odd-3", "nothing says how large its pods may be"),
        ("gke: {{project: acme-prod, region: europe-west4, {gke}}}", "", "add e.g. gke: {project: acme"),
    ],
    ids=["store", "host", "front may be empty", "no front", "too small", "unknown machine", "no gke"],
)
def test_what_cannot_work_on_a_cluster_is_refused_with_the_line(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in WIDE
    file = tmp_path / "platform.yaml"
    file.write_text(WIDE.replace(old, new).format(gke="zones: [europe-west4-a]", ingresses=1))
    platform = load_platform(file, "live")
    with pytest.raises(PlanError, match=r"platform\.yaml:\d+: ") as refusal:
        cluster_objects(platform, plan(platform))
    assert said in str(refusal.value)


def test_a_pool_name_that_gke_would_not_take_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    text = WIDE.replace("whole", "w" * 38).format(gke="zones: [europe-west4-a]", ingresses=1)
    file.write_text(text)
    platform = load_platform(file, "live")
    with pytest.raises(PlanError, match="43 characters where GKE allows 40"):
        cluster_objects(platform, plan(platform))


def test_a_machine_with_few_cores_for_its_replicas_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(
        WIDE.format(gke="zones: [europe-west4-a]", ingresses=1)
        .replace("vram_gib: 2}", "vram_gib: 2}, cpus: 4")
        .replace(", per_node: 2", "")
    )
    platform = load_platform(file, "live")
    (warning,) = cpu_shortages(platform, plan(platform))
    assert "the replicas of one GPU book 24 CPU, but a pod on g2-standard-24 has 23 for 2 GPU" in warning


# As files.


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_two_runs_give_the_same_bytes(environment: str) -> None:
    assert environment_files(*shipped(environment)) == environment_files(*shipped(environment))


@pytest.mark.parametrize("scaler", ["hpa", "keda"])
def test_a_plain_ingress_is_scaled_by_the_backlog_and_breaks_no_rule(scaler: str) -> None:
    platform, the_plan = shipped("prod")
    files = environment_files(platform, the_plan)
    folder = f"ingress-{scaler}"
    ingress = list(yaml.safe_load_all(files[f"{folder}/ingress.yaml"]))
    scalers = list(yaml.safe_load_all(files[f"{folder}/{scaler}.yaml"]))
    assert [line for each in (*ingress, *scalers) for line in problems(each)] == []
    assert broken(ingress, platform, the_plan) == []
    (deployment,) = of_kind(ingress, "Deployment")
    assert "replicas" not in deployment["spec"]
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > platform.jobs.drain_s
    target = scalers[-1]["spec"]["scaleTargetRef"]
    assert target["name"] == deployment["metadata"]["name"]
    assert "num_undelivered_messages" in json.dumps(scalers)
    assert platform.jobs.subscription in json.dumps(scalers)
    assert "Ray workers can't be scaled so" in files[f"{folder}/{scaler}.yaml"]
    least = scalers[-1]["spec"].get("minReplicas", scalers[-1]["spec"].get("minReplicaCount"))
    assert least == {"hpa": 1, "keda": 0}[scaler]


@pytest.mark.parametrize("environment", ["local", *ENVIRONMENTS])
def test_the_file_of_one_environment_says_the_same_platform(environment: str, tmp_path: Path) -> None:
    platform = load_platform(SHIPPED, environment)
    (tmp_path / "platform.yaml").write_text(platform_file(platform))
    assert load_platform(tmp_path / "platform.yaml", environment) == platform


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
def test_an_overlay_adds_a_plain_ingress(tmp_path: Path) -> None:
    for path, text in environment_files(*shipped("prod")).items():
        (tmp_path / "prod" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "prod" / path).write_text(text)
    overlay = {"resources": ["prod"], "components": ["prod/ingress-keda"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kinds = {each["kind"] for each in yaml.safe_load_all(done.stdout)}
    assert {"RayService", "ScaledObject", "Deployment"} <= kinds


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_kustomize_builds_the_folder_and_a_patch_can_name_one_worker_group(environment: str, tmp_path: Path) -> None:
    platform, the_plan = shipped(environment)
    base = tmp_path / "base"
    for path, text in environment_files(platform, the_plan).items():
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).write_text(text)
    (tmp_path / "openapi.json").write_text((base / "openapi.json").read_text())
    patch = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": platform.name, "namespace": f"cotenant-{environment}"},
        "spec": {"rayClusterConfig": {"workerGroupSpecs": [{"groupName": "shared", "maxReplicas": 77}]}},
    }
    overlay = {
        "resources": ["base"],
        "openapi": {"path": "openapi.json"},
        "patches": [{"patch": json.dumps(patch)}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    ours = cluster_objects(platform, the_plan)
    assert sorted((e["kind"], e["metadata"]["name"]) for e in built) == sorted(
        (e["kind"], e["metadata"]["name"]) for e in ours
    )
    assert group(built, "shared")["maxReplicas"] == 77
    # The rest of that group, and the other one, are as they were.
    group(built, "shared")["maxReplicas"] = group(ours, "shared")["maxReplicas"]
    assert {g["groupName"]: g for g in cluster(built)["workerGroupSpecs"]} == {
        g["groupName"]: g for g in cluster(ours)["workerGroupSpecs"]
    }
