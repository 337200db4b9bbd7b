"""A workload as a Cloud Run service: what it says, and what can't be said.

Cloud Run has no schema that works offline. So containers, probes and volumes are checked as core/v1 has them, in a Pod
around them, and the keys of the service against a list from cloud.google.com/run/docs/reference/yaml/v1: a misspelled
key is found, a wrong value that only Cloud Run knows is not.
"""

from __future__ import annotations

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cotenant.config import Platform, load_platform
from cotenant.errors import PlanError
from cotenant.gpu.plan import plan
from cotenant.manifests.cloudrun import cloudrun_files
from cotenant.manifests.files import Files
from tests.contracts.manifest_schemas import problems
from tests.contracts.tools import tool

pytestmark = pytest.mark.unit

L4 = {"accelerator": "nvidia-l4", "machine": "g2-standard-8", "nodes": {"max": 3}}


def a_platform(*, pool: dict[str, Any] | None = None, gke: bool = True, **workload: Any) -> Platform:
    return Platform.model_validate(
        {
            "name": "acme",
            "environment": "prod",
            "workloads": {
                "mockups": {
                    "mockup": {"templates": ["mug"]},
                    "gpu": {"vram_gib": 1.5},
                    "replicas": {"min": 0, "max": 8},
                    **workload,
                }
            },
            "pools": {"shared": pool or L4, "front": {"machine": "e2-standard-4"}},
            "gke": {"project": "acme-1", "region": "us-central1", "tag": "1.2.3"} if gke else None,
        }
    )


def a_writer(**workload: Any) -> Platform:
    llm = {"model": "gs://acme-weights/qwen3-4b", "context_tokens": 8192}
    given = {"llm": llm, "gpu": {"vram_gib": 12}, "replicas": {"min": 1, "max": 4}, **workload}
    return a_platform(mockup=None, **given)


def files(platform: Platform, **options: Any) -> Files:
    return cloudrun_files(platform, plan(platform), "mockups", **options)


def service(platform: Platform, **options: Any) -> dict[str, Any]:
    document = yaml.safe_load(files(platform, **options)["service.yaml"])
    assert isinstance(document, dict)
    return document


def container(document: dict[str, Any]) -> dict[str, Any]:
    (found,) = document["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def variables(document: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container(document)["env"]}


# --- what it says ---


def test_it_runs_our_image_on_one_gpu_of_the_pools_type_with_the_least_that_cloud_run_takes_beside_it() -> None:
    document = service(a_platform())
    assert container(document)["image"] == "us-central1-docker.pkg.dev/acme-1/acme/engines:1.2.3"
    assert container(document)["resources"] == {"limits": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}}
    spec = document["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"run.googleapis.com/accelerator": "nvidia-l4"}
    large = service(a_platform(pool={**L4, "accelerator": "nvidia-rtx-pro-6000", "machine": "g4-standard-48"}))
    assert container(large)["resources"]["limits"] == {"cpu": "20", "memory": "80Gi", "nvidia.com/gpu": "1"}


def test_the_container_runs_the_workload_alone_and_listens_where_cloud_run_asks() -> None:
    platform = a_platform(residency="sleep", spill={"url": "https://elsewhere.run.app"})
    rendered = files(platform)
    text = variables(yaml.safe_load(rendered["service.yaml"]))["COTENANT_PLATFORM_FILE"]
    assert rendered["platform.yaml"].endswith(text)
    alone = load(text)
    assert list(alone.workloads) == ["mockups"]
    assert (alone.gateway.host, alone.gateway.port, alone.gateway.keys_env) == ("0.0.0.0", 8080, "COTENANT_API_KEYS")
    assert container(service(platform))["ports"] == [{"name": "http1", "containerPort": 8080}]
    workload = alone.workloads["mockups"]
    assert (workload.residency, workload.spill, alone.jobs.ingresses) == ("always", None, 0)
    assert workload.gpu.gib == 1.5
    plan(alone)


def load(text: str) -> Platform:
    file = Path("platform.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_, **__: text)
        return load_platform(file, "prod")


def test_an_instance_holds_as_many_replicas_as_its_cores_and_takes_a_request_for_each_slot() -> None:
    document = service(a_platform())
    alone = load(variables(document)["COTENANT_PLATFORM_FILE"])
    assert (alone.workloads["mockups"].replicas.min, alone.workloads["mockups"].replicas.max) == (3, 3)
    template = document["spec"]["template"]
    assert template["spec"]["containerConcurrency"] == 3 * 2
    assert template["metadata"]["annotations"]["autoscaling.knative.dev/maxScale"] == "3"
    writer = service(a_writer())
    assert writer["spec"]["template"]["spec"]["containerConcurrency"] == 32


def test_it_scales_to_zero_unless_told_otherwise() -> None:
    def scale(document: dict[str, Any]) -> tuple[str, str]:
        annotations = document["spec"]["template"]["metadata"]["annotations"]
        return annotations["autoscaling.knative.dev/minScale"], annotations["autoscaling.knative.dev/maxScale"]

    assert scale(service(a_writer())) == ("0", "4")
    assert scale(service(a_writer(), min_instances=1, max_instances=2)) == ("1", "2")


def test_a_request_may_take_as_long_as_its_deadline() -> None:
    assert service(a_platform(deadline_s=90.5))["spec"]["template"]["spec"]["timeoutSeconds"] == 91


def test_nobody_gets_in_without_both_an_invoker_role_and_a_key() -> None:
    document = service(a_platform())
    assert document["metadata"]["annotations"]["run.googleapis.com/invoker-iam-disabled"] == "false"
    key = {"secretKeyRef": {"name": "acme-prod-mockups-keys", "key": "latest"}}
    assert variables(document)["COTENANT_API_KEYS"] == key
    script = files(a_platform())["deploy.sh"]
    assert "serviceAccount:$CALLS" in script
    assert "allUsers" not in script.replace("nothing is granted to allUsers", "")


def test_weights_in_a_bucket_are_mounted_and_the_workload_is_asked_for_by_its_own_name() -> None:
    rendered = files(a_writer())
    document = yaml.safe_load(rendered["service.yaml"])
    assert load(variables(document)["COTENANT_PLATFORM_FILE"]).workloads["mockups"].models == ("/mnt/weights/qwen3-4b",)
    (volume,) = document["spec"]["template"]["spec"]["volumes"]
    assert volume["csi"]["driver"] == "gcsfuse.run.googleapis.com"
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "acme-weights"
    assert container(document)["volumeMounts"] == [{"name": "weights", "mountPath": "/mnt/weights"}]
    assert "gs://acme-weights" in rendered["deploy.sh"]
    assert "model: mockups" in rendered["deploy.sh"]
    assert "volumes" not in service(a_platform())["spec"]["template"]["spec"]


def test_a_model_that_every_instance_would_download_is_told_of() -> None:
    platform = a_writer(llm={"model": "Qwen/Qwen3-4B-Instruct-2507"})
    assert "Every instance downloads Qwen/Qwen3-4B-Instruct-2507" in files(platform)["service.yaml"]


def test_a_changed_platform_file_is_another_revision_and_the_same_one_is_not() -> None:
    def label(**workload: Any) -> str:
        document = service(a_platform(**workload))
        found: str = document["spec"]["template"]["metadata"]["labels"]["cotenant-platform"]
        return found

    assert label() == label() != label(queue=7)


def test_what_is_rendered_is_the_same_every_time() -> None:
    assert files(a_writer()) == files(a_writer())


# --- what can't be said ---


@pytest.mark.parametrize(
    ("platform", "said"),
    [
        pytest.param(
            a_platform(pool={"accelerator": "nvidia-h100-80gb", "machine": "a3-highgpu-1g"}),
            "runs on nvidia-h100-80gb (pool shared), and Cloud Run has nvidia-l4, nvidia-rtx-pro-6000",
            id="another GPU",
        ),
        pytest.param(
            a_platform(pool={"accelerator": "cpu", "vram_gib": 12}), "runs on cpu (pool shared)", id="no GPU at all"
        ),
        pytest.param(
            a_platform(pool={"accelerator": "nvidia-a100-80gb", "machine": "a2-ultragpu-1g", "mig": "1g.10gb"}),
            "runs on MIG slices (1g.10gb) of pool shared, and Cloud Run gives whole GPUs",
            id="a slice",
        ),
        pytest.param(a_platform(gke=False), "has no gke section", id="no project"),
        pytest.param(a_platform(cpus=16), "books 16 cores a replica, and an instance of Cloud Run has 8", id="cores"),
        pytest.param(a_platform(deadline_s=7200), "Cloud Run ends a request after 3600 s", id="hours"),
        pytest.param(a_writer(llm={"model": "./weights"}), "a folder of this machine", id="a local folder"),
        pytest.param(
            a_platform().model_copy(update={"name": "a" * 38}), "where Cloud Run allows 49", id="a name too long"
        ),
    ],
)
def test_what_cloud_run_can_not_run_is_refused_with_what_to_do(platform: Platform, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        files(platform)
    assert said in str(caught.value)


def test_a_workload_that_is_not_there_is_refused() -> None:
    platform = a_platform()
    with pytest.raises(PlanError, match=r"no workload 'writer'.*here are mockups"):
        cloudrun_files(platform, plan(platform), "writer")


def test_a_workload_of_more_cores_has_a_larger_instance() -> None:
    assert container(service(a_platform(cpus=5)))["resources"]["limits"]["cpu"] == "8"


def test_instances_that_can_not_be_had_are_refused() -> None:
    with pytest.raises(PlanError, match="5000 instances"):
        files(a_platform(), max_instances=5000)


# --- as far as a schema goes ---

#: Keys of Cloud Run's YAML, by where they are.
KEYS: dict[str, set[str]] = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "metadata": {"name", "namespace", "labels", "annotations"},
    "metadata.annotations": {
        f"run.googleapis.com/{name}"
        for name in (
            *("launch-stage", "description", "ingress", "binary-authorization", "minScale", "maxScale"),
            *("invoker-iam-disabled", "iap-enabled", "scalingMode", "manualInstanceCount", "custom-audiences"),
        )
    },
    "spec": {"template", "traffic"},
    "spec.template": {"metadata", "spec"},
    "spec.template.metadata": {"name", "labels", "annotations"},
    "spec.template.metadata.annotations": {
        *("autoscaling.knative.dev/minScale", "autoscaling.knative.dev/maxScale"),
        *(
            f"run.googleapis.com/{name}"
            for name in (
                *("cpu-throttling", "startup-cpu-boost", "sessionAffinity", "execution-environment"),
                *("vpc-access-connector", "vpc-access-egress", "network-interfaces", "encryption-key"),
                *("gpu-zonal-redundancy-disabled", "container-dependencies", "cloudsql-instances"),
            )
        ),
    },
    "spec.template.spec": {
        *("containerConcurrency", "timeoutSeconds", "serviceAccountName", "containers", "volumes", "nodeSelector"),
    },
    "spec.template.spec.nodeSelector": {"run.googleapis.com/accelerator"},
}
CONTAINER_KEYS = {
    *("name", "image", "command", "args", "ports", "env", "resources", "startupProbe", "livenessProbe"),
    *("volumeMounts", "readinessProbe"),
}


@pytest.mark.parametrize("platform", [a_platform(), a_writer()], ids=["mockups", "writer"])
def test_every_key_is_one_of_cloud_runs(platform: Platform) -> None:
    document = service(platform)
    for path, known in KEYS.items():
        part = document
        for name in filter(None, path.split(".")):
            part = part.get(name, {})
        assert set(part) <= known, path
    assert set(container(document)) <= CONTAINER_KEYS
    assert all(isinstance(value, str) for value in document["spec"]["template"]["metadata"]["annotations"].values())


@pytest.mark.parametrize("platform", [a_platform(), a_writer()], ids=["mockups", "writer"])
def test_containers_probes_and_volumes_are_what_core_v1_has(platform: Platform) -> None:
    spec = copy.deepcopy(service(platform)["spec"]["template"]["spec"])
    pod = {name: spec[name] for name in ("serviceAccountName", "nodeSelector", "containers", "volumes") if name in spec}
    assert problems({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}) == []


@pytest.mark.parametrize("platform", [a_platform(), a_writer()], ids=["mockups", "writer"])
def test_probes_and_mounts_keep_cloud_runs_own_limits(platform: Platform) -> None:
    document = service(platform)
    probe = container(document)["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] <= 240
    assert probe["initialDelaySeconds"] <= 240
    assert probe["timeoutSeconds"] <= probe["periodSeconds"]
    forbidden = ("/dev", "/proc", "/sys")
    assert not any(one["mountPath"].startswith(forbidden) for one in container(document).get("volumeMounts", ()))
    assert len(variables(document)["COTENANT_PLATFORM_FILE"]) < 32_768


# --- the script ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, text in files(a_writer()).items():
        (tmp_path / path).write_text(text)
    return tmp_path


def deploy(folder: Path, *arguments: str, there: bool = False) -> tuple[list[str], str]:
    """Run the script with a gcloud that only writes down what it is asked. Its calls, and what was printed."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    log = folder / "calls"
    log.write_text("")
    url = 'case "$*" in *--format*) echo https://x.run.app; exit 0 ;; esac'
    answers = url if there else f'{url}\ncase "$*" in *" describe "*) exit 1 ;; esac'
    key = f'case "$*" in *"--data-file -"*) cat > {folder}/key ;; esac'
    (tools / "gcloud").write_text(f'#!/bin/bash\necho "$*" >> {log}\n{key}\n{answers}\n')
    (tools / "gcloud").chmod(0o755)
    done = subprocess.run(
        ["bash", folder / "deploy.sh", *arguments],
        env={"PATH": f"{tools}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return log.read_text().splitlines(), done.stdout


def test_a_first_deploy_makes_what_is_missing_and_lets_only_the_cluster_in(folder: Path) -> None:
    calls, said = deploy(folder)
    made = [call for call in calls if " describe " not in f" {call} "]
    assert [call.split(" --")[0] for call in made] == [
        "services enable run.googleapis.com secretmanager.googleapis.com iam.googleapis.com",
        "iam service-accounts create acme-prod-mockups-run",
        "secrets create acme-prod-mockups-keys",
        "secrets versions add acme-prod-mockups-keys",
        "secrets add-iam-policy-binding acme-prod-mockups-keys",
        "storage buckets add-iam-policy-binding gs://acme-weights",
        "run services replace service.yaml",
        "run services add-iam-policy-binding acme-prod-mockups",
    ]
    assert made[-1].endswith(
        "--member serviceAccount:acme-prod@acme-1.iam.gserviceaccount.com --role roles/run.invoker"
    )
    assert re.fullmatch("acme-prod:sk-[0-9a-f]{48}", (folder / "key").read_text())
    assert "sk-" not in said
    assert 'spill: {url: "https://x.run.app", auth: google, key_env: COTENANT_SPILL_KEY, model: mockups}' in said


def test_a_second_deploy_makes_no_second_key_or_account(folder: Path) -> None:
    calls, _ = deploy(folder, there=True)
    assert not any(" create " in call or "versions add" in call for call in calls)
    assert any("services replace" in call for call in calls)


def test_a_dry_run_asks_and_changes_nothing(folder: Path) -> None:
    calls, said = deploy(folder, "--dry-run")
    assert calls == []
    assert "gcloud run services replace service.yaml" in said


def test_everything_can_be_deleted_again(folder: Path) -> None:
    calls, _ = deploy(folder, "--destroy", there=True)
    assert [call.split(" --")[0] for call in calls if " delete " in call] == [
        "run services delete acme-prod-mockups",
        "secrets delete acme-prod-mockups-keys",
        "iam service-accounts delete acme-prod-mockups-run@acme-1.iam.gserviceaccount.com",
    ]
    gone, said = deploy(folder, "--destroy")
    assert not any(" delete " in call for call in gone)
    assert said.startswith("gone: ")


@pytest.mark.skipif(tool("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(folder: Path) -> None:
    found = subprocess.run([str(tool("shellcheck")), folder / "deploy.sh"], capture_output=True, text=True, check=False)
    assert found.stdout == ""
