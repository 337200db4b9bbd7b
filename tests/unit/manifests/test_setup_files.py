"""What the set-up script is told, and what an environment is told that can't work there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cotenant.cli.queue_names import queue_names
from cotenant.config import Platform, load_platform
from cotenant.jobs.queue.topology import wanted
from cotenant.manifests.files import Files
from cotenant.manifests.gke.node_pools import node_pools
from cotenant.manifests.gke.region import region_problems
from cotenant.manifests.gke.registry import BUILD_CACHE, cleanup_policy
from cotenant.manifests.gke.setup_script import setup_files
from cotenant.manifests.kubernetes.containers import door_secrets
from cotenant.manifests.kubernetes.standalone import ingress_deployment
from cotenant.manifests.site import Site

pytestmark = pytest.mark.unit

FILE = """
workloads:
  mockups: {mockup: {}, gpu: {vram_gib: 2}}
  writer: {llm: {model: gs://acme-weights/qwen3}, gpu: {vram_gib: 12}}
jobs: {store: gs://acme-results/prod}
environments:
  prod:
    pools:
      front: {machine: e2-standard-4, nodes: {min: 1, max: 2}}
      shared: {accelerator: nvidia-l4, machine: g2-standard-8, spot: true, nodes: {max: 3}}
    gke: {project: acme, region: europe-west4}
"""


def platform_of(tmp_path: Path, **changes: str) -> Platform:
    text = FILE
    for old, new in changes.items():
        text = text.replace(old, new)
    (tmp_path / "platform.yaml").write_text(text)
    return load_platform(tmp_path / "platform.yaml", "prod")


def files_of(platform: Platform) -> Files:
    return setup_files(platform, queue_names(platform))


def value(files: Files, name: str) -> str:
    found = re.search(rf"^readonly (?:-a )?{name}=(.*)$", files["gke/setup.sh"], re.MULTILINE)
    assert found is not None, name
    return found.group(1)


def test_node_pools_are_sent_as_they_were_checked(tmp_path: Path) -> None:
    platform = platform_of(tmp_path)
    files = files_of(platform)
    for pool in node_pools(platform):
        assert json.loads(files[f"gke/node-pools/{pool['name']}.json"]) == {"nodePool": pool}
        digest = pool["config"]["resourceLabels"]["cotenant_definition"]
        assert f"'{pool['name']} {digest} " in value(files, "NODE_POOLS")
    assert len([name for name in files if name.startswith("gke/node-pools/")]) == 3


def test_every_name_is_the_sites(tmp_path: Path) -> None:
    platform = platform_of(tmp_path)
    files, site = files_of(platform), Site.of(platform)
    assert value(files, "CLUSTER") == site.cluster
    assert value(files, "NODE_EMAIL") == site.node_account_email
    assert value(files, "EMAIL") == site.service_account_email
    assert value(files, "NODE_IMAGE") == site.node_image
    assert value(files, "IMAGES") == f"({site.image('doors')} {site.image('engines')})"
    assert value(files, "WEIGHTS") == "(acme-weights)"
    assert value(files, "RESULTS_BUCKET") == "acme-results"


def test_registry_disk_image_and_buckets_are_in_the_clusters_region(tmp_path: Path) -> None:
    files = files_of(platform_of(tmp_path))
    assert value(files, "REGION") == "europe-west4"
    assert value(files, "ENGINES_IMAGE").startswith("europe-west4-docker.pkg.dev/acme/")
    script = files["gke/setup.sh"]
    for command in ("artifacts repositories create", "storage buckets create", "container clusters create"):
        for found in re.finditer(re.escape(command), script):
            assert '--location="$REGION"' in script[found.start() : found.start() + 200]
    assert '--storage-location="$REGION"' in script


def test_nothing_of_the_platform_file_is_read_as_shell(tmp_path: Path) -> None:
    platform = platform_of(tmp_path, **{"acme-results/prod": "acme-$(rm -rf x)/prod"})
    assert value(files_of(platform), "RESULTS_BUCKET") == "'acme-$(rm -rf x)'"


def test_topics_and_rights_are_those_of_the_jobs_package(tmp_path: Path) -> None:
    platform = platform_of(tmp_path)
    topology, queue = wanted(platform.jobs, platform.workloads), queue_names(platform)
    assert queue.topics == tuple(topic.name for topic in topology.topics)
    assert queue.subscriptions == tuple(one.name for one in topology.subscriptions)
    held = {(right.kind, right.name, right.role) for right in queue.rights}
    assert ("subscription", "jobs-cotenant.writer", "roles/pubsub.subscriber") in held
    assert ("topic", "results", "roles/pubsub.publisher") in held
    assert ("bucket", "acme-results", "roles/storage.objectUser") in held
    assert not [right for right in held if right[1] == "dead-kept"]
    assert {right.kind for right in queue.agent_rights} == {"topic", "subscription"}
    assert "'subscription jobs-cotenant.writer roles/pubsub.subscriber'" in value(files_of(platform), "GRANTS")


def test_no_role_on_the_project_goes_to_an_environment(tmp_path: Path) -> None:
    script = files_of(platform_of(tmp_path))["gke/setup.sh"]
    grants = re.findall(r"grant (\S+) \"serviceAccount:\$(\w+)\" (\S+)", script)
    assert {account for _, account, noun in grants if noun == "projects"} == {"NODE_EMAIL"}
    assert value(files_of(platform_of(tmp_path)), "NODE_ROLES") == (
        "(roles/container.defaultNodeServiceAccount roles/serviceusage.serviceUsageConsumer)"
    )


def test_without_baked_images_there_is_nothing_to_bake(tmp_path: Path) -> None:
    files = files_of(platform_of(tmp_path, **{"europe-west4": "europe-west4, baked: false"}))
    assert value(files, "BAKED") == "false"
    assert "gke/scratch-lifecycle.json" not in files


def test_the_registry_keeps_what_is_newest_and_the_build_cache_and_deletes_what_is_left_over(tmp_path: Path) -> None:
    policies = json.loads(files_of(platform_of(tmp_path))["gke/cleanup-policy.json"])
    assert policies == cleanup_policy()
    kept = [policy for policy in policies if policy["action"]["type"] == "Keep"]
    assert [policy["mostRecentVersions"]["keepCount"] for policy in kept if "mostRecentVersions" in policy] == [10]
    prefixes = [policy["condition"]["tagPrefixes"] for policy in kept if "condition" in policy]
    assert prefixes == [["buildcache"]]
    images = Path(__file__).parents[3] / "images"
    assert f"/$$TARGET:{BUILD_CACHE}" in (images / "cloudbuild.yaml").read_text()
    deleted = [policy["condition"] for policy in policies if policy["action"]["type"] == "Delete"]
    assert [condition["tagState"] for condition in deleted] == ["untagged", "tagged"]
    assert all(re.fullmatch(r"[0-9]+d", condition["olderThan"]) for condition in deleted)
    assert not (images / "cleanup-policy.json").exists(), "one policy, in one place"


def test_every_secret_that_a_container_asks_for_is_one_that_the_script_makes(tmp_path: Path) -> None:
    spill = "writer: {spill: {url: https://w.example.org, key_env: WRITER_KEY}, llm:"
    platform = platform_of(tmp_path, **{"writer: {llm:": spill})
    asked = {
        entry["valueFrom"]["secretKeyRef"]["key"]
        for each in ingress_deployment(platform)
        for container in each.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ())
        for entry in (*container["env"], *door_secrets(platform))
        if "valueFrom" in entry
    }
    made = value(files_of(platform), "SECRET_KEYS").strip("()").split()
    assert set(made) == asked
    assert {"COTENANT_API_KEYS", "WRITER_KEY", "COTENANT_UPSTREAM_KEY"} < asked


def test_without_ingresses_nobody_needs_a_key_for_the_gateway(tmp_path: Path) -> None:
    files = files_of(platform_of(tmp_path, **{"jobs: {": "jobs: {ingresses: 0, "}))
    assert "COTENANT_UPSTREAM_KEY" not in value(files, "SECRET_KEYS")
    assert value(files, "UPSTREAM_KEY") == "''"


def test_files_are_the_same_every_time(tmp_path: Path) -> None:
    platform = platform_of(tmp_path)
    assert files_of(platform) == files_of(platform)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("gs://acme-results/prod", "./results", "results would go with the pod"),
        ("gs://acme-results/prod", "s3://acme/results", "results would leave Google Cloud"),
        ("gs://acme-weights/qwen3", "s3://weights/qwen3", "outside Google Cloud; copy it to gs://"),
        ("europe-west4", "europe-west4, node_pools: auto, version: '1.32'", "needs gke.version 1.33.3-gke.1136000"),
    ],
    ids=["folder", "other-cloud", "weights", "auto-version"],
)
def test_what_cannot_work_on_gke_is_told(tmp_path: Path, old: str, new: str, says: str) -> None:
    platform = platform_of(tmp_path, **{old: new})
    assert [problem for problem in region_problems(platform) if says in problem]


def test_an_account_needs_a_name_that_is_long_enough(tmp_path: Path) -> None:
    (tmp_path / "platform.yaml").write_text("name: x" + FILE.replace("  prod:", "  dev:"))
    problems = region_problems(load_platform(tmp_path / "platform.yaml", "dev"))
    assert [one for one in problems if "would be called x-dev, and Google Cloud wants at least 6" in one]


def test_a_sound_environment_has_no_problems(tmp_path: Path) -> None:
    assert region_problems(platform_of(tmp_path)) == ()


@pytest.mark.parametrize("environment", ["dev", "staging", "prod"])
def test_the_platform_file_of_the_repository_has_none(environment: str) -> None:
    file = Path(__file__).parents[3] / "deployments" / "platform.yaml"
    assert region_problems(load_platform(file, environment)) == ()
