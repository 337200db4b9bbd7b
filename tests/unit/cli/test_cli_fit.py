"""`cotenant fit`: estimates of models and of a file's workloads, as a picture and as data; mistakes as clean lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cotenant.cli import main
from cotenant.cli.fit import kind_of
from cotenant.cli.fit_view import _cells, _letters
from cotenant.cli.options import with_budgets
from cotenant.config import load_platform
from cotenant.gpu.fit import InMemoryHub, Part
from cotenant.gpu.fit.folder import Folder, InMemoryFolder

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
PLATFORM = ROOT / "deployments/platform.yaml"
QWEN = json.loads((ROOT / "tests/data/model_configs/qwen3-4b-instruct-2507.json").read_text())["config"]
HUB: Mapping[str, Folder] = {
    "Qwen/Qwen3-4B-Instruct-2507": InMemoryFolder("Qwen/…", {"config.json": json.dumps(QWEN).encode()}),
    "org/painter": InMemoryFolder(
        "org/painter", {"model_index.json": b'{"_class_name": "X", "vae": ["diffusers", "V"]}'}
    ),
}


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub in memory, and an empty cache."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr("cotenant.cli.fit._hub", lambda: InMemoryHub(dict(HUB)))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["fit", *arguments])


def data(*arguments: str) -> list[dict[str, Any]]:
    done = run(*arguments, "--json")
    assert done.exit_code in (0, 2), done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def parts(answer: Mapping[str, Any]) -> dict[str, float]:
    return {part["name"]: part["gib"] for part in answer["parts"]}


def test_a_model_is_shown_part_by_part_with_formula_and_source() -> None:
    done = run("Qwen/Qwen3-4B-Instruct-2507", "--context", "8192")
    assert done.exit_code == 0
    assert "GiB on nvidia-l4" in done.stdout
    assert "4.022 G parameters x 2 bytes (bfloat16)" in done.stdout
    assert "144 KiB a token, 32 requests of 2048 tokens" in done.stdout
    assert "counted from its config" in done.stdout
    assert "vram_gib: auto takes" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    l4 = next(row for row in rows if row[:1] == ["nvidia-l4"])
    assert l4[1:3] == ["22", "1"]
    assert int(l4[3].replace(",", "")) > 50_000
    assert int(l4[4]) > 8


def test_a_smaller_gpu_that_serves_fewer_and_one_that_serves_none_are_told_apart() -> None:
    shown = run("Qwen/Qwen3-4B-Instruct-2507", "--context", "8192", "--concurrency", "64").stdout
    assert "1, fewer at once" in shown
    large = run("Qwen/Qwen3-4B-Instruct-2507", "--dtype", "float32", "--context", "8192").stdout
    assert "does not fit" in large


def test_options_move_the_estimate() -> None:
    plain = data("Qwen/Qwen3-4B-Instruct-2507")[0]
    for options, part in (
        (["--quantization", "fp8"], "weights"),
        (["--kv-dtype", "fp8"], "KV cache"),
        (["--context", "512"], "KV cache"),
        (["--concurrency", "4"], "KV cache"),
    ):
        assert parts(data("Qwen/Qwen3-4B-Instruct-2507", *options)[0])[part] < parts(plain)[part]
    on_cpu = data("smollm2-135m", "--accelerator", "cpu")[0]
    assert "engine process" in parts(on_cpu)
    assert on_cpu["asleep_gib"] > 1


def test_each_kind_is_known_by_its_name_or_its_files() -> None:
    assert data("smollm2-135m")[0]["kind"] == "llm"
    assert data("tiny-inpaint", "--concurrency", "2")[0]["kind"] == "image"
    mug = data("mug", "--size", "512", "--accelerator", "cpu")[0]
    assert mug["kind"] == "mockup"
    assert mug["total_gib"] < data("mug", "--accelerator", "cpu")[0]["total_gib"]


def test_a_local_folder_is_what_its_files_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    assert kind_of(str(tmp_path), None) == "llm"
    (tmp_path / "model_index.json").write_text("{}")
    assert kind_of(str(tmp_path), None) == "image"
    assert kind_of("some/product.glb", None) == "mockup"


def test_a_hub_models_kind_is_seen_in_its_files() -> None:
    hub = InMemoryHub(dict(HUB))
    assert kind_of("org/painter", hub) == "image"
    assert kind_of("Qwen/Qwen3-4B-Instruct-2507", hub) == "llm"
    done = run("org/painter")
    assert done.exit_code == 2
    assert "no .safetensors in its components" in done.stderr


def test_the_hubs_cache_tells_the_kind_without_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "hf/hub/models--a--b"
    (base / "snapshots/1").mkdir(parents=True)
    (base / "refs").mkdir()
    (base / "refs/main").write_text("1")
    (base / "snapshots/1/config.json").write_text(json.dumps(QWEN))
    assert kind_of("a/b", InMemoryHub({})) == "llm"
    assert data("a/b")[0]["kind"] == "llm"


def test_a_files_workloads_are_estimated_on_their_pools_accelerators() -> None:
    answers = data("-f", str(PLATFORM), "-e", "local")
    assert [answer["name"] for answer in answers] == ["mockups", "writer", "painter"]
    assert {answer["accelerator"] for answer in answers} == {"cpu"}
    assert all(answer["enough"] for answer in answers)
    assert [each["name"] for each in answers[0]["accelerators"]] == ["cpu"]
    (writer,) = data("-f", str(PLATFORM), "-e", "prod", "writer")
    assert writer["model"] == "Qwen/Qwen3-4B-Instruct-2507"
    assert writer["declared_gib"] == 12
    (chosen,) = data("-f", str(PLATFORM), "writer", "--accelerator", "nvidia-l4")
    assert chosen["accelerator"] == "nvidia-l4"


def test_a_budget_that_is_too_small_is_said_and_ends_with_code_two(tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(
        "workloads:\n  m: {mockup: {}, gpu: {vram_gib: 1}}\n  n: {mockup: {}, gpu: {vram_gib: 2}}\n"
        "environments: {local: {pools: {p: {accelerator: cpu, vram_gib: 4}}}}\n"
    )
    done = run("-f", str(file))
    assert done.exit_code == 2
    assert "Its vram_gib is 1: too little to serve anything." in done.stdout
    assert "Its vram_gib is 2: enough for fewer at once." in done.stdout
    assert [answer["enough"] for answer in data("-f", str(file))] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b"], "takes one MODEL, got 2"),
        (["-e", "local", "--context", "512"], "--context goes with a MODEL"),
        (["-e", "local", "nobody"], "'nobody' is no workload of cotenant; it has mockups, writer, painter"),
        (["smollm2-135m", "--size", "512"], "--size means nothing for an llm model"),
        (["tiny-inpaint", "--kv-dtype", "fp8"], "--kv-dtype means nothing for an image model"),
        (["tiny-inpaint", "--quantization", "awq"], "takes none, 8bit or 4bit; got 'awq'"),
        (["mug", "--dtype", "float16"], "--dtype means nothing for a mockup model"),
        (["smollm2-135m", "--accelerator", "nvidia-l5"], "'nvidia-l5' is not known; nvidia-tesla-t4,"),
        (["smollm2-135m", "--context", "1"], "not in the range"),
        (["no/model"], "the hub has no model 'no/model'; check the id"),
        (["./nowhere"], "there is no folder nowhere"),
        (["gs://bucket/model", "--kind", "llm"], "sizes of gs://bucket/model can't be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_as_clean_lines_with_code_two(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.output


def test_a_workload_in_an_object_store_can_not_be_estimated(tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(
        "workloads: {w: {llm: {model: 'gs://b/m'}, gpu: {vram_gib: 4}}}\n"
        "environments: {local: {pools: {p: {accelerator: cpu, vram_gib: 8}}}}\n"
    )
    done = run("-f", str(file))
    assert done.exit_code == 2
    assert "w: sizes of gs://b/m can't be read" in done.stderr


def child(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"from cotenant.cli import main; main({['fit', *arguments]!r})"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("arguments", [["smollm2-135m"], ["-e", "local"]], ids=["a model", "a file"])
def test_piped_it_has_no_escape_codes_and_fits_eighty_columns(arguments: list[str]) -> None:
    done = child(*arguments, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert max(len(line.rstrip()) for line in done.stdout.splitlines()) <= 80


def test_a_terminal_without_unicode_gets_it_in_ascii() -> None:
    done = child("mug", "--accelerator", "cpu", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "2048^2 pixels" in done.stdout


def test_it_works_where_neither_ray_nor_torch_nor_httpx_is_installed() -> None:
    heavy = ("ray", "torch", "vllm", "mitsuba", "google", "fastapi", "numpy", "httpx", "psutil", "gguf", "diffusers")
    program = (
        f"import sys\nfor name in {heavy!r}: sys.modules[name] = None\n"
        "from cotenant.cli import main\nmain(['fit', 'smollm2-135m', '--json'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["total_gib"] > 1


def test_an_empty_bar_and_names_out_of_letters_are_drawn_all_the_same() -> None:
    same = [Part("ab", 0, "", ""), Part("a", 0, "", ""), Part("b", 0, "", "")]
    assert _letters(same) == {"ab": "A", "a": "#", "b": "B"}
    assert sum(cells for _, cells in _cells(same)) <= 60
    many = [Part(f"part {n}", 1, "", "") for n in range(100)]
    assert sum(cells for _, cells in _cells(many)) == 60


# -- where plan and compile take their budgets from


def test_plan_fills_auto_in_and_refuses_what_can_not_serve(tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    pools = "environments: {local: {pools: {p: {accelerator: cpu, vram_gib: 12}}}}\n"
    file.write_text("workloads: {w: {llm: {model: smollm2-135m}, gpu: {vram_gib: auto}}}\n" + pools)
    done = CliRunner().invoke(main, ["plan", "-f", str(file), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["workloads"]["w"]["vram_gib"] > 1
    file.write_text("workloads:\n  w: {llm: {model: smollm2-135m}, gpu: {vram_gib: 1}}\n" + pools)
    for command in ("plan", "compile"):
        done = CliRunner().invoke(main, [command, "-f", str(file)])
        assert done.exit_code == 2
        assert done.stderr.startswith(f"{file}:2: w needs ")


def test_only_auto_makes_the_command_line_ask_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    class Hub:
        def folder(self, model_id: str) -> Folder:
            asked.append(model_id)
            return HUB[model_id]

    monkeypatch.setattr("cotenant.gpu.fit.hub.HttpsHub", Hub)
    platform = load_platform(PLATFORM, "prod")
    _, notes = with_budgets(platform)
    assert asked == []
    assert "writer (12 GiB)" in notes[0]
    writer = platform.workloads["writer"]
    auto = writer.model_copy(update={"gpu": writer.gpu.model_copy(update={"vram_gib": "auto"})})
    filled, _ = with_budgets(platform.model_copy(update={"workloads": {"writer": auto}}))
    assert asked == ["Qwen/Qwen3-4B-Instruct-2507"]
    assert filled.workloads["writer"].gpu.gib > 10
