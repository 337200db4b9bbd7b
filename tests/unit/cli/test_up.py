"""What `up` decides before it touches anything: paths, what the machine must offer, what a failure says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cotenant.cli.machine import ray_node
from cotenant.cli.machine.ray_node import NodeSpec
from cotenant.cli.up import _last_words, absolute_paths, listening, node_spec, up
from cotenant.config import Platform, load_platform
from cotenant.errors import EnvironmentFault

pytestmark = pytest.mark.unit


def platform(tmp_path: Path, pools: dict[str, Any] | None = None, **sections: Any) -> Platform:
    file = tmp_path / "platform.yaml"
    content = {
        "workloads": {"mockups": {"mockup": {"templates": ["mug", "art/tall.glb"]}, "gpu": {"vram_gib": 1}}},
        "environments": {"local": {"pools": pools or {"shared": {"accelerator": "cpu", "vram_gib": 2}}}},
        **sections,
    }
    file.write_text(yaml.safe_dump(content))
    return load_platform(file)


def test_local_paths_become_absolute_and_others_stay(tmp_path: Path) -> None:
    given = platform(tmp_path, jobs={"store": "./results"}, gateway={"keys_file": "keys.txt"})
    made = absolute_paths(given, Path("/srv/shop"))
    assert made.workloads["mockups"].mockup is not None
    assert made.workloads["mockups"].mockup.templates == ("mug", "/srv/shop/art/tall.glb")
    assert made.jobs.store == "/srv/shop/results"
    assert made.gateway.keys_file == "/srv/shop/keys.txt"
    bucket = platform(tmp_path, jobs={"store": "gs://bucket/results"})
    assert absolute_paths(bucket, Path("/srv/shop")).jobs.store == "gs://bucket/results"


@pytest.mark.parametrize(
    ("model", "made"),
    [
        ("./models/sdxl", "/srv/shop/models/sdxl"),
        ("tiny-inpaint", "tiny-inpaint"),
        ("black-forest-labs/FLUX.2-klein-4B", "black-forest-labs/FLUX.2-klein-4B"),
        ("gs://bucket/sdxl", "gs://bucket/sdxl"),
    ],
)
def test_a_local_diffusion_folder_becomes_absolute_and_other_names_stay(tmp_path: Path, model: str, made: str) -> None:
    workloads = {"painter": {"image": {"model": model}, "gpu": {"vram_gib": 1}}}
    image = absolute_paths(platform(tmp_path, workloads=workloads), Path("/srv/shop")).workloads["painter"].image
    assert image is not None
    assert image.model == made


def test_a_container_has_its_door_listen_to_whatever_docker_publishes(tmp_path: Path) -> None:
    given = platform(tmp_path)
    assert listening(given, None) is given
    assert listening(given, "0.0.0.0").gateway.host == "0.0.0.0"


def test_a_door_without_keys_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTENANT_HOME", str(tmp_path))
    monkeypatch.delenv("COTENANT_API_KEYS", raising=False)
    workloads = {"mockups": {"mockup": {}, "gpu": {"vram_gib": 3}}}
    platform(tmp_path, {"shared": {"accelerator": "cpu", "vram_gib": 4}}, workloads=workloads)
    done = CliRunner().invoke(up, ["-f", str(tmp_path / "platform.yaml"), "--host", "0.0.0.0"])
    assert isinstance(done.exception, EnvironmentFault)
    assert "listens on 0.0.0.0" in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_a_machine_offers_every_node_of_a_cpu_pool_and_the_resource_of_each_pool(tmp_path: Path) -> None:
    pools = {
        "shared": {"accelerator": "cpu", "vram_gib": 1, "gpus_per_node": 2, "nodes": {"max": 2}},
        "front": {"machine": "e2-standard-4"},
    }
    spec = node_spec(platform(tmp_path, pools))
    assert spec.num_gpus == 4
    assert set(spec.resources) == {"cotenant-pool-shared", "cotenant-pool-front"}


def test_one_machine_cannot_be_two_gpu_pools(tmp_path: Path) -> None:
    pools = {name: {"accelerator": "cpu", "vram_gib": 2} for name in ("small", "large")}
    with pytest.raises(EnvironmentFault, match=r"2 GPU pools \(large, small\)"):
        node_spec(platform(tmp_path, pools))


def test_a_virtual_gpu_larger_than_the_machines_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"60000\.0 GiB, but this machine has"):
        node_spec(platform(tmp_path, {"shared": {"accelerator": "cpu", "vram_gib": 60000}}))


def test_what_a_ray_lacks_is_told_with_what_it_has() -> None:
    spec = NodeSpec(num_cpus=2, num_gpus=2, resources={"cotenant-pool-shared": 1000.0})
    assert spec.lacking({"GPU": 1.0, "cotenant-pool-shared": 1000.0}) == {"GPU": (2.0, 1.0)}
    assert spec.lacking({"GPU": 2.0, "cotenant-pool-shared": 1000.0}) == {}
    assert spec.start_line() == "ray start --head --num-gpus 2 --resources '{\"cotenant-pool-shared\": 1000.0}'"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        pytest.param(
            'Traceback (most recent call last):\n  File "a.py", line 3\n    part = 1/0\nValueError: too big\nnow',
            "ValueError: too big\nnow",
            id="after the last frame",
        ),
        pytest.param("plain words", "plain words", id="no traceback"),
        pytest.param("\n".join(map(str, range(30))), "\n".join(map(str, range(18, 30))), id="only the end of many"),
    ],
)
def test_a_failure_is_told_without_its_traceback(message: str, words: str) -> None:
    assert _last_words(message) == words


def test_rays_spare_processes_import_what_replicas_need_and_what_the_user_adds() -> None:
    ours = ",".join(ray_node.PRELOADED)
    assert ray_node.preloading({}) == {ray_node.PRELOAD: ours}
    assert ray_node.preloading({ray_node.PRELOAD: "mitsuba,deployments.replica"}) == {
        ray_node.PRELOAD: f"{ours},mitsuba"
    }
