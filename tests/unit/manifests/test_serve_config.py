"""The Serve config: complete, derived from the plan, and in keys that Serve really knows."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cotenant.calls import Directory, Served
from cotenant.config import Platform, load_platform
from cotenant.config.model import Gateway, Jobs, LlmSpec, MockupSpec
from cotenant.gpu.plan import plan
from cotenant.manifests.pools import node_resources, pool_resource
from cotenant.manifests.scaling import ASSUMED_STARTS_S
from cotenant.manifests.serve import serve_config, unknown_keys
from cotenant.sim.scene import SCENE
from cotenant.sim.stages import DEFAULTS, Image

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
ENVIRONMENTS = ("local", "dev", "staging", "prod")


def shipped(environment: str) -> tuple[Platform, dict[str, Any]]:
    platform = load_platform(ROOT / "deployments/platform.yaml", environment)
    return platform, serve_config(platform, plan(platform))


def application(config: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(a for a in config["applications"] if a["name"] == name)
    return found


def deployment(config: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = application(config, name)["deployments"]
    assert isinstance(found, dict)
    return found


def served_from(plain: dict[str, Any]) -> Served:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
    return Served(**fields)


def test_there_is_one_application_for_each_workload_and_door_and_none_has_a_route() -> None:
    _, config = shipped("prod")
    assert [a["name"] for a in config["applications"]] == ["mockups", "writer", "painter", "gateway", "ingress"]
    assert {a["route_prefix"] for a in config["applications"]} == {None}
    assert config["proxy_location"] == "Disabled"


def test_a_renderer_books_its_share_on_its_pool() -> None:
    _, config = shipped("dev")
    options = deployment(config, "mockups")["ray_actor_options"]
    assert options == {"num_cpus": 1.0, "num_gpus": 0.0962, "resources": {"cotenant-pool-shared": 0.001}}


def test_an_llm_books_by_placement_group_since_its_workers_are_actors_of_their_own() -> None:
    _, config = shipped("dev")
    found = deployment(config, "writer")
    assert found["placement_group_bundles"] == [{"CPU": 1.0, "GPU": 0.2404, "cotenant-pool-shared": 0.001}]
    assert found["ray_actor_options"] == {"num_cpus": 0, "num_gpus": 0}


def test_a_fixed_number_of_replicas_is_no_autoscaling() -> None:
    _, config = shipped("local")
    assert deployment(config, "writer")["num_replicas"] == 1
    assert "autoscaling_config" not in deployment(config, "writer")


def test_a_range_of_replicas_is_autoscaling_within_it() -> None:
    platform, config = shipped("prod")
    scaling = deployment(config, "writer")["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (1, 8)
    assert 1 <= scaling["target_ongoing_requests"] <= platform.workloads["writer"].slots


def test_what_scales_a_workload_is_told_its_bounds_its_share_and_its_target() -> None:
    _, config = shipped("prod")
    scaling = deployment(config, "writer")["autoscaling_config"]
    assert scaling["policy"]["policy_function"] == "deployments.policy:Policy"
    assert scaling["policy"]["policy_kwargs"] == {"name": "writer"}
    told = next(one for one in told_of_scaling(config, "gateway")["workloads"] if one["name"] == "writer")
    assert told_of_scaling(config, "ingress") == told_of_scaling(config, "gateway")
    assert (told["name"], told["min"], told["max"], told["slots"], told["target_wait_s"]) == ("writer", 1, 8, 32, 2.0)
    assert told["num_gpus"] == deployment(config, "writer")["placement_group_bundles"][0]["GPU"]
    # The policy decides when: Serve adds no delay of its own.
    assert {scaling[key] for key in scaling if key.endswith("delay_s")} == {0.0}


def told_of_scaling(config: dict[str, Any], door: str) -> Any:
    return deployment(config, door)["user_config"]["scaling"]


def test_another_target_restarts_no_replica() -> None:
    platform, before = shipped("prod")
    writer = platform.workloads["writer"].model_copy(update={"target_wait_s": 9.0})
    changed = platform.model_copy(update={"workloads": {**platform.workloads, "writer": writer}})
    after = serve_config(changed, plan(changed))
    assert application(after, "writer") == application(before, "writer")
    assert told_of_scaling(after, "gateway") != told_of_scaling(before, "gateway")


def test_starts_are_assumed_as_the_simulator_does() -> None:
    for kind, (wake_s, share_s, node_s) in ASSUMED_STARTS_S.items():
        stages = replace(DEFAULTS, weights=SCENE) if kind == "mockup" else DEFAULTS
        share = stages.mean_share_s
        assert wake_s == pytest.approx(stages.wake.mean_s, rel=0.1)
        assert share_s == pytest.approx(share, rel=0.1)
        assert node_s == pytest.approx(share + stages.mean_node_s(Image.STREAM), rel=0.1)


@pytest.mark.parametrize(("ingresses", "beside"), [(0, 2), (1, 2), (3, 4)])
def test_interactive_calls_have_room_in_a_replica_that_batch_jobs_fill(ingresses: int, beside: int) -> None:
    """Every ingress sends jobs for all slots, half as many again of short ones. The autoscaler counts slots alone."""
    platform, _ = shipped("prod")
    platform = platform.model_copy(update={"jobs": platform.jobs.model_copy(update={"ingresses": ingresses})})
    config = serve_config(platform, plan(platform))
    for name, workload in platform.workloads.items():
        assert deployment(config, name)["max_ongoing_requests"] == beside * workload.slots + workload.slots // 2
        scaling = deployment(config, name).get("autoscaling_config")
        assert scaling is None or scaling["target_ongoing_requests"] == max(1.0, 0.75 * workload.slots)


def test_an_update_starts_the_next_replica_first_only_where_the_plan_has_room() -> None:
    data: dict[str, Any] = {
        "environment": "test",
        "workloads": {name: {"mockup": {}, "gpu": {"vram_gib": gib}} for name, gib in (("large", 7.0), ("small", 2.0))},
        "pools": {"shared": {"accelerator": "cpu", "vram_gib": 12}},
    }
    platform = Platform.model_validate(data)
    config = serve_config(platform, plan(platform))
    assert deployment(config, "large")["max_surge_percent"] == 0
    assert deployment(config, "small")["max_surge_percent"] == 100


def test_the_doors_run_without_gpu_on_the_front_pool_and_know_what_is_served() -> None:
    platform, config = shipped("prod")
    for door in ("gateway", "ingress"):
        options = deployment(config, door)["ray_actor_options"]
        assert options["num_gpus"] == 0
        assert options["resources"] == {pool_resource("front"): 0.001}
        served = deployment(config, door)["user_config"]["workloads"]
        rebuilt = [served_from(plain) for plain in served]
        assert tuple(rebuilt) == Directory.of(platform).workloads


def test_without_ingresses_there_is_no_ingress_application() -> None:
    platform, _ = shipped("local")
    platform = platform.model_copy(update={"jobs": platform.jobs.model_copy(update={"ingresses": 0})})
    names = [a["name"] for a in serve_config(platform, plan(platform))["applications"]]
    assert "ingress" not in names


def test_arguments_rebuild_into_the_models_they_came_from() -> None:
    platform, config = shipped("prod")
    assert (
        MockupSpec.model_validate(application(config, "mockups")["args"]["spec"])
        == platform.workloads["mockups"].mockup
    )
    assert LlmSpec.model_validate(application(config, "writer")["args"]["spec"]) == platform.workloads["writer"].llm
    assert Gateway.model_validate(application(config, "gateway")["args"]["gateway"]) == platform.gateway
    for door in ("gateway", "ingress"):
        assert Jobs.model_validate(application(config, door)["args"]["jobs"]) == platform.jobs
    assert application(config, "writer")["args"]["terms"]["vram_gib"] == 12
    assert application(config, "writer")["args"]["terms"]["accelerator"] == "nvidia-l4"


def test_a_changed_workload_leaves_the_other_applications_as_they_were() -> None:
    platform, before = shipped("local")
    mockups = platform.workloads["mockups"].model_copy(update={"mockup": MockupSpec(max_samples=64)})
    platform = platform.model_copy(update={"workloads": {**platform.workloads, "mockups": mockups}})
    after = serve_config(platform, plan(platform))
    assert application(after, "mockups") != application(before, "mockups")
    for untouched in ("writer", "gateway", "ingress"):
        assert application(after, untouched) == application(before, untouched)


_CHECK = """
import json, sys
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema, ServeApplicationSchema, ServeDeploySchema
models = {
    "config": ServeDeploySchema, "application": ServeApplicationSchema, "deployment": DeploymentSchema,
    "ray_actor_options": RayActorOptionsSchema, "autoscaling_config": AutoscalingConfig,
}
for config in json.load(sys.stdin):
    ServeDeploySchema.model_validate(config)
    for application in config["applications"]:
        for deployment in application["deployments"]:
            if "autoscaling_config" in deployment:
                AutoscalingConfig(**deployment["autoscaling_config"])
print(json.dumps({name: sorted(model.model_fields) for name, model in models.items()}))
"""


def test_serve_knows_every_key_and_accepts_every_environment() -> None:
    """In a child process, so that unit tests import no Ray."""
    configs = [shipped(environment)[1] for environment in ENVIRONMENTS]
    done = subprocess.run(
        [sys.executable, "-c", _CHECK], input=json.dumps(configs), capture_output=True, text=True, check=False
    )
    if "No module named 'ray'" in done.stderr:
        pytest.skip("ray is not installed")
    assert done.returncode == 0, done.stderr
    known = json.loads(done.stdout)
    for config in configs:
        assert unknown_keys(config, known) == []
    wrong = {"proxy_locations": "", "applications": [{"name": "a", "deployments": [{"name": "R", "num_replicaz": 3}]}]}
    assert unknown_keys(wrong, known) == ["proxy_locations", "a.R.num_replicaz"]


def test_replicas_that_are_to_be_spread_take_a_resource_that_each_node_has_so_many_of() -> None:
    gpu = {"vram_gib": 1.0}
    data: dict[str, Any] = {
        "environment": "test",
        "workloads": {
            "spread": {"mockup": {}, "gpu": gpu, "replicas": {"min": 2, "max": 4, "per_node": 2}},
            "writer": {"llm": {"model": "m"}, "gpu": gpu, "replicas": {"min": 1, "max": 2, "per_node": 1}},
            "plain": {"mockup": {"templates": ["mug"]}, "gpu": gpu},
        },
        "pools": {"shared": {"accelerator": "cpu", "vram_gib": 12, "nodes": {"min": 1, "max": 3}}, "front": {}},
    }
    platform = Platform.model_validate(data)
    config = serve_config(platform, plan(platform))
    assert node_resources(platform, "shared") == {
        pool_resource("shared"): 1000.0, "cotenant-spread-spread": 2.0, "cotenant-spread-writer": 1.0,
    }  # fmt: skip
    assert deployment(config, "spread")["ray_actor_options"]["resources"]["cotenant-spread-spread"] == 1
    assert deployment(config, "writer")["placement_group_bundles"][0]["cotenant-spread-writer"] == 1
    assert set(deployment(config, "plain")["ray_actor_options"]["resources"]) == {pool_resource("shared")}
