"""What a platform file means: merging of environments, defaults, anchors, the committed schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from cotenant.config import environments, load_platform
from cotenant.config.schema import COMMITTED, json_schema, render

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "platform.yaml"
    file.write_text(text)
    return file


def test_five_lines_are_a_platform(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "workloads:\n"
        "  mockups: {mockup: {}, gpu: {vram_gib: 1.5}}\n"
        "  writer: {llm: {model: smollm2-135m}, gpu: {vram_gib: 5}}\n"
        "environments:\n"
        "  local: {pools: {shared: {accelerator: cpu, vram_gib: 12}}}\n",
    )
    platform = load_platform(file)
    assert [workload.kind for workload in platform.workloads.values()] == ["mockup", "llm"]
    assert [workload.slots for workload in platform.workloads.values()] == [2, 32]
    assert platform.front_pool is None


@pytest.mark.parametrize("environment", ["local", "dev", "staging", "prod"])
def test_the_shipped_file_is_valid_in_every_environment(environment: str) -> None:
    platform = load_platform(ROOT / "deployments/platform.yaml", environment)
    assert set(platform.workloads) == {"mockups", "painter", "writer"}
    assert environment in environments(ROOT / "deployments/platform.yaml")


def test_an_environment_overrides_what_it_names_and_no_more(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "workloads: {m: {mockup: {templates: [mug]}, gpu: {vram_gib: 1}, replicas: {min: 1, max: 4}}}\n"
        "environments:\n"
        "  local: {pools: {p: {accelerator: cpu, vram_gib: 4}}, workloads: {m: {replicas: {max: 2}}}}\n"
        "  dev: {pools: {p: {accelerator: cpu, vram_gib: 4}}}\n",
    )
    local, dev = load_platform(file, "local").workloads["m"], load_platform(file, "dev").workloads["m"]
    assert (local.replicas.min, local.replicas.max) == (1, 2)
    assert local.mockup == dev.mockup
    assert dev.replicas.max == 4


def test_an_environment_that_names_another_kind_drops_the_shared_one(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "workloads: {w: {mockup: {templates: [mug]}, gpu: {vram_gib: 1}}}\n"
        "environments:\n"
        "  local: {pools: {p: {accelerator: cpu, vram_gib: 4}}}\n"
        "  dev: {pools: {p: {accelerator: cpu, vram_gib: 4}}, workloads: {w: {llm: {model: tiny}}}}\n",
    )
    assert load_platform(file, "local").workloads["w"].kind == "mockup"
    assert load_platform(file, "dev").workloads["w"].kind == "llm"


def test_min_alone_sets_max_too(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "workloads: {m: {mockup: {}, gpu: {vram_gib: 1}, replicas: {min: 3}}}\n"
        "environments: {local: {pools: {p: {accelerator: cpu, vram_gib: 4, nodes: {min: 2}}}}}\n",
    )
    platform = load_platform(file)
    assert platform.workloads["m"].replicas.max == 3
    assert platform.pools["p"].nodes.max == 2


def test_anchors_and_merge_keys_work_and_own_keys_win(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "workloads:\n"
        "  a: &a {mockup: {}, gpu: &gpu {vram_gib: 1}, queue: 7}\n"
        "  b:\n"
        "    queue: 9\n"
        "    <<: *a\n"
        "  c: {llm: {model: m}, gpu: *gpu}\n"
        "environments: {local: {pools: {p: {accelerator: cpu, vram_gib: 4}}}}\n",
    )
    workloads = load_platform(file).workloads
    assert workloads["b"].kind == "mockup"
    assert workloads["b"].queue == 9
    assert workloads["c"].gpu.vram_gib == 1


def test_the_committed_schema_is_what_the_models_say() -> None:
    assert COMMITTED.read_text() == render()


def test_the_schema_takes_the_shipped_file_and_refuses_an_unknown_key() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    import json

    import yaml

    schema = json.loads(COMMITTED.read_text())
    data = yaml.safe_load((ROOT / "deployments/platform.yaml").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    assert list(validator.iter_errors(data)) == []
    data["environments"]["dev"]["workloads"] = {"writer": {"replica": {"max": 2}}}
    assert list(validator.iter_errors(data))


def test_every_key_of_the_schema_is_documented() -> None:
    import json

    schema = json.loads(COMMITTED.read_text())
    bare = [
        f"{name}.{key}"
        for name, model in schema["$defs"].items()
        for key, value in model.get("properties", {}).items()
        if "description" not in value and "$ref" not in value
    ]
    assert bare == []


def test_jobs_live_in_the_google_cloud_project_of_their_environment(tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    text = (
        "workloads: {m: {mockup: {}, gpu: {vram_gib: 1}}}\n"
        "environments:\n"
        "  local: {pools: &pools {a: {accelerator: cpu, vram_gib: 4}}}\n"
        "  prod: {pools: *pools, gke: {project: acme, region: us-central1}}\n"
        "  other: {pools: *pools, gke: {project: acme, region: us-central1}, jobs: {project: elsewhere}}\n"
    )
    file.write_text(text)
    projects = [load_platform(file, name).jobs.project for name in ("local", "prod", "other")]
    assert projects == ["cotenant", "acme", "elsewhere"]


def test_the_schema_knows_the_bounds_of_memory() -> None:
    budget = json_schema()["$defs"]["GpuBudget"]["properties"]["vram_gib"]
    number, auto = budget["anyOf"]
    assert (number["exclusiveMinimum"], number["maximum"]) == (0, 65536)
    assert auto == {"const": "auto"}


def test_how_long_a_request_may_wait_goes_by_its_kind_unless_the_file_says(tmp_path: Path) -> None:
    def wait_s(more: str) -> float:
        workload = f"workloads: {{w: {{llm: {{model: smollm2-135m}}, gpu: {{vram_gib: 5}}{more}}}}}\n"
        pools = "environments: {local: {pools: {p: {accelerator: cpu, vram_gib: 8}}}}\n"
        return load_platform(write(tmp_path, workload + pools)).workloads["w"].wait_s

    assert wait_s("") == 2.0
    assert wait_s(", target_wait_s: 0.5") == 0.5
