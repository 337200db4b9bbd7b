"""What the Compose file of one machine means: one owner of the GPU, nothing privileged, nothing without a limit."""

from __future__ import annotations

from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml

import cotenant
from cotenant.cli.queue_names import queue_names
from cotenant.config import Platform, load_platform
from cotenant.errors import EnvironmentFault, PlanError
from cotenant.gpu.machines import MACHINES
from cotenant.gpu.plan import plan
from cotenant.manifests.files import HEADER, Files
from cotenant.manifests.vm import vm_files
from cotenant.manifests.vm.compose import stop_grace_s

pytestmark = pytest.mark.unit

COMMITTED = Path(__file__).parents[3] / "deployments/platform.yaml"
L4 = {"accelerator": "nvidia-l4", "machine": "g2-standard-8", "spot": True}
GKE = {"project": "acme", "region": "us-central1"}


def platform(tmp_path: Path, pools: dict[str, Any], gke: dict[str, Any] | None = None, **sections: Any) -> Platform:
    environment: dict[str, Any] = {"pools": pools, **({"gke": gke} if gke else {})}
    content = {
        "workloads": {"mockups": {"mockup": {}, "gpu": {"vram_gib": 2}}},
        "environments": {"local": environment},
        **sections,
    }
    file = tmp_path / "platform.yaml"
    file.write_text(yaml.safe_dump(content))
    return load_platform(file)


def generated(given: Platform) -> Files:
    return vm_files(given, plan(given), queue_names(given))


def composed(files: Files) -> dict[str, Any]:
    content = yaml.safe_load(files["compose.yaml"])
    assert isinstance(content, dict)
    return content


def container(given: Platform) -> dict[str, Any]:
    service = composed(generated(given))["services"]["platform"]
    assert isinstance(service, dict)
    return service


@pytest.fixture(params=["dev", "local"])
def environment(request: pytest.FixtureRequest) -> Platform:
    return load_platform(COMMITTED, request.param)


def mib(limit: str) -> int:
    return int(limit.removeprefix("${COTENANT_MEMORY:-").removesuffix("}").removesuffix("M"))


def test_every_service_is_restarted_watched_limited_and_pinned(environment: Platform) -> None:
    for name, service in composed(generated(environment))["services"].items():
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"], name
        assert service["healthcheck"]["start_period"], name
        assert service["deploy"]["resources"]["limits"]["pids"] > 0, name
        assert mib(service["deploy"]["resources"]["limits"]["memory"]) > 0, name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name
        image = service["image"].removeprefix("${COTENANT_IMAGE:-").removesuffix("}")
        tag = image.rpartition("/")[2].partition(":")[2]
        assert tag, image
        assert "latest" not in image
        assert tag != "emulators", "the tag that moves"


def test_nothing_is_privileged(environment: Platform) -> None:
    text = generated(environment)["compose.yaml"]
    assert "docker.sock" not in text
    assert "privileged" not in text.replace("no-new-privileges", "")
    for name, service in composed(generated(environment))["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"network_mode", "pid", "ipc", "devices"} & set(service), name
        assert service["user"] == "1000:1000" or name == "tls"
        assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "tls" else [])


def test_only_the_machine_itself_reaches_what_is_published_without_tls(environment: Platform) -> None:
    services = composed(generated(environment))["services"]
    assert services["platform"]["ports"] == ["${COTENANT_BIND:-127.0.0.1}:${COTENANT_PORT:-8000}:8000"]
    assert "ports" not in services["pubsub"]
    assert "tls" in services["tls"]["profiles"]
    assert "--host=0.0.0.0" in str(services["platform"]["command"]), "or Docker could publish nothing"


def test_volumes_are_declared_and_what_is_bound_must_be_there(environment: Platform) -> None:
    content = composed(generated(environment))
    mounts = [mount for service in content["services"].values() for mount in service.get("volumes", [])]
    assert {mount["source"] for mount in mounts if mount["type"] == "volume"} == set(content["volumes"])
    for mount in mounts:
        if mount["type"] == "bind":
            assert mount["read_only"] is True
            assert mount["bind"] == {"create_host_path": False}


def test_services_start_in_an_order_that_ends(environment: Platform) -> None:
    services = composed(generated(environment))["services"]
    order = list(
        TopologicalSorter({name: list(each.get("depends_on", {})) for name, each in services.items()}).static_order()
    )
    assert order == ["pubsub", "platform", "tls"]
    assert services["platform"]["depends_on"]["pubsub"] == {"condition": "service_healthy", "required": False}
    assert services["tls"]["depends_on"]["platform"] == {"condition": "service_healthy"}


def test_no_secret_is_in_any_file(environment: Platform) -> None:
    files = generated(environment)
    services = composed(files)["services"]
    assert services["platform"]["env_file"] == [{"path": "${COTENANT_SECRETS:-secrets.env}", "required": True}]
    assert "COTENANT_API_KEYS" not in services["platform"]["environment"]
    assert 'echo "COTENANT_API_KEYS=acme:$(openssl' in files["secrets.env.example"]


def test_the_platform_alone_has_the_gpus_of_the_plan(tmp_path: Path) -> None:
    two = {**L4, "machine": "g2-standard-24", "gpus_per_node": 2}
    for pool, gpus in ((L4, 1), (two, 2)):
        given = platform(tmp_path, {"shared": pool})
        services = composed(generated(given))["services"]
        device = services["platform"]["deploy"]["resources"]["reservations"]["devices"]
        capabilities = ["gpu", "compute", "graphics", "utility"]
        assert device == [{"driver": "nvidia", "count": gpus, "capabilities": capabilities}]
        assert gpus == plan(given).pools["shared"].gpus_per_node
        assert all("reservations" not in services[other]["deploy"]["resources"] for other in ("pubsub", "tls"))


def test_a_cpu_environment_has_no_gpu_and_no_mps(tmp_path: Path) -> None:
    service = container(platform(tmp_path, {"shared": {"accelerator": "cpu", "vram_gib": 12}}))
    assert "reservations" not in service["deploy"]["resources"]
    assert "MPS" not in str(service)
    assert service["entrypoint"] == ["cotenant"]
    assert f"cotenant/engines-cpu:{cotenant.__version__}" in service["image"]


def test_limits_together_are_less_than_the_machine_has(tmp_path: Path) -> None:
    for machine in ("g2-standard-4", "g2-standard-8", "g2-standard-16"):
        services = composed(generated(platform(tmp_path, {"shared": {**L4, "machine": machine}})))["services"]
        taken = sum(mib(each["deploy"]["resources"]["limits"]["memory"]) for each in services.values())
        assert taken <= (MACHINES[machine].memory_gib - 0.75) * 1024


def test_a_virtual_gpu_has_its_memory_and_ray_some_beside_it(tmp_path: Path) -> None:
    service = container(platform(tmp_path, {"shared": {"accelerator": "cpu", "vram_gib": 12}}))
    assert service["deploy"]["resources"]["limits"]["memory"] == "${COTENANT_MEMORY:-16384M}"


def test_the_grace_is_as_long_as_the_longest_request_or_the_ingress_drain(tmp_path: Path) -> None:
    short = {"mockups": {"mockup": {}, "gpu": {"vram_gib": 2}, "deadline_s": 30}}
    given = platform(tmp_path, {"shared": L4}, workloads=short, jobs={"drain_s": 900})
    assert stop_grace_s(given) == 960
    assert container(given)["stop_grace_period"] == "960s"
    assert stop_grace_s(platform(tmp_path, {"shared": L4})) == 360


def test_mps_runs_beside_its_clients_and_only_if_asked(tmp_path: Path) -> None:
    service = container(platform(tmp_path, {"shared": L4}))
    assert service["environment"]["COTENANT_MPS"] == "${COTENANT_MPS:-0}"
    # Whatever the host's daemon left in the default place is none of ours.
    assert service["environment"]["CUDA_MPS_PIPE_DIRECTORY"] not in ("", "/tmp/nvidia-mps")
    assert "nvidia-cuda-mps-control -d" in service["command"][0]
    assert service["command"][0].splitlines()[-1].startswith("exec cotenant up --foreground ")


def test_what_the_platform_file_names_on_this_machine_comes_along(tmp_path: Path) -> None:
    given = platform(
        tmp_path,
        {"shared": L4},
        workloads={
            "mockups": {"mockup": {"templates": ["mug", "scenes/cup.glb"]}, "gpu": {"vram_gib": 2}},
            "painter": {"image": {"model": "./models/sdxl"}, "gpu": {"vram_gib": 2}},
        },
        gateway={"keys_file": "/etc/keys"},
        jobs={"store": "/mnt/results"},
    )
    mounts = {each["target"]: each for each in container(given)["volumes"]}
    assert mounts["/var/lib/cotenant/scenes/cup.glb"]["source"] == "./scenes/cup.glb"
    assert mounts["/var/lib/cotenant/models/sdxl"]["source"] == "./models/sdxl"
    assert mounts["/etc/keys"]["source"] == "/etc/keys"
    assert mounts["/etc/keys"]["read_only"] is True
    assert mounts["/mnt/results"] == {
        "type": "bind",
        "source": "/mnt/results",
        "target": "/mnt/results",
        "bind": {"create_host_path": False},
    }
    assert container(given)["working_dir"] == "/var/lib/cotenant"


def test_on_google_cloud_the_image_is_the_environments_own_and_scripts_come_along(tmp_path: Path) -> None:
    given = platform(tmp_path, {"shared": L4}, gke={**GKE, "domain": "mockups.acme.com"})
    files = generated(given)
    assert {"startup.sh", "create.sh"} < set(files)
    assert f"us-central1-docker.pkg.dev/acme/cotenant/engines:{cotenant.__version__}" in files["compose.yaml"]
    assert composed(files)["services"]["tls"]["environment"]["DOMAIN"] == "${DOMAIN:-mockups.acme.com}"
    assert set(generated(platform(tmp_path, {"shared": L4}))) == {
        "compose.yaml",
        "Caddyfile",
        ".env.example",
        "secrets.env.example",
    }


@pytest.mark.parametrize(
    ("pool", "lines"),
    [
        pytest.param(
            L4,
            ["model=(--provisioning-model=SPOT --instance-termination-action=STOP --maintenance-policy=TERMINATE)"],
            id="spot",
        ),
        pytest.param(
            {"accelerator": "nvidia-tesla-t4", "machine": "n1-standard-8"},
            ["model=(--maintenance-policy=TERMINATE --accelerator=type=nvidia-tesla-t4,count=1)"],
            id="n1 gets its GPU by name",
        ),
        pytest.param(
            {"accelerator": "cpu", "vram_gib": 8, "machine": "e2-standard-8"},
            ["model=(--maintenance-policy=MIGRATE)", "image_project=debian-cloud", "image_family=debian-12"],
            id="cpu",
        ),
    ],
)
def test_a_machine_is_had_as_its_pool_says(tmp_path: Path, pool: dict[str, Any], lines: list[str]) -> None:
    files = generated(platform(tmp_path, {"shared": pool}, gke=GKE))
    assert set(lines) <= set(files["create.sh"].splitlines())
    assert f"gpus={0 if pool['accelerator'] == 'cpu' else 1}" in files["startup.sh"].splitlines()


def test_the_zone_is_the_environments_first_or_the_regions(tmp_path: Path) -> None:
    chosen = generated(platform(tmp_path, {"shared": L4}, gke={**GKE, "zones": ["us-central1-c"]}))
    assert "zone=us-central1-c" in chosen["create.sh"].splitlines()
    assert "zone=us-central1-a" in generated(platform(tmp_path, {"shared": L4}, gke=GKE))["create.sh"].splitlines()


def test_a_copied_example_is_the_users_own_and_not_a_generated_file_to_be_cleared_away(environment: Platform) -> None:
    for name, text in generated(environment).items():
        marked = any(line.startswith(HEADER) for line in text.splitlines()[:2])
        assert marked == (not name.endswith(".example")), name


def test_the_same_platform_gives_the_same_files(environment: Platform) -> None:
    assert generated(environment) == generated(environment)


@pytest.mark.parametrize(
    ("pools", "refusal", "words"),
    [
        pytest.param({"a": L4, "b": L4}, EnvironmentFault, r"has 2 GPU pools \(a, b\)", id="two pools"),
        pytest.param({"a": {"accelerator": "nvidia-l4"}}, PlanError, r"names no machine type.*machine: g2", id="none"),
        pytest.param({"a": {**L4, "machine": "g2-odd-1"}}, PlanError, r"g2-odd-1, whose memory is not known", id="odd"),
        pytest.param(
            {"a": {"accelerator": "nvidia-h100-80gb", "machine": "a3-highgpu-1g", "mig": "1g.10gb"}},
            PlanError,
            r"MIG slices \(1g\.10gb\).*drop mig",
            id="mig",
        ),
        pytest.param(
            {"a": {"accelerator": "cpu", "vram_gib": 14, "machine": "e2-standard-4"}},
            PlanError,
            r"14 GiB, which takes 18\.0 GiB.*e2-standard-4 has 13\.8 GiB",
            id="memory",
        ),
    ],
)
def test_what_one_machine_cannot_be_is_refused_with_a_way_out(
    tmp_path: Path, pools: dict[str, Any], refusal: type[Exception], words: str
) -> None:
    given = platform(tmp_path, pools)
    with pytest.raises(refusal, match=words):
        generated(given)


def test_a_minimum_that_takes_two_machines_is_refused(tmp_path: Path) -> None:
    pool = {**L4, "nodes": {"max": 5}}
    many = {"mockups": {"mockup": {}, "gpu": {"vram_gib": 12}, "replicas": {"min": 2}}}
    given = platform(tmp_path, {"shared": pool}, workloads=many)
    with pytest.raises(PlanError, match=r"needs 2 GPUs for its replicas\.min, but one machine of pool shared has 1"):
        generated(given)
