"""The command line: plan, compile, schema; errors as clean lines; nothing heavy imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from cotenant.cli import COMMANDS, main
from cotenant.gpu.plan import plan as make_plan

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
PLATFORM = ROOT / "deployments/platform.yaml"

#: What neither help nor plan may need.
HEAVY = ("ray", "torch", "vllm", "mitsuba", "google", "fastapi", "numpy", "httpx", "psutil", "obstore", "highspy")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def child(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("environment", ["local", "dev", "staging", "prod"])
def test_plan_as_json_has_what_scripts_need(environment: str) -> None:
    done = run("plan", "-f", str(PLATFORM), "-e", environment, "--json")
    assert done.exit_code == 0
    data = json.loads(done.stdout)
    assert data["gpus_needed"] >= data["gpus_needed_at_min"] >= 1
    assert data["monthly_usd"] <= data["monthly_usd_whole_gpus"]
    assert data["gpus_lower_bound"] <= data["gpus_needed"]
    assert {"mockups", "writer"} <= set(data["workloads"])
    for workload in data["workloads"].values():
        assert workload["pool"] == "shared"
        assert 0 < workload["num_gpus"] <= 1
        assert 0 < workload["floor_gib"] <= workload["vram_gib"]
    for pool in data["pools"].values():
        assert pool["awake"] <= pool["at_home"]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A renderer and an LLM on L4s, and the same where some of it sleeps."""
    file = tmp_path / "platform.yaml"
    file.write_text(
        "workloads:\n"
        "  mockups: {mockup: {}, gpu: {vram_gib: 1.5}, replicas: {min: 1, max: 16}}\n"
        "  writer: {llm: {model: m}, gpu: {vram_gib: 12}, replicas: {min: 1, max: 8}}\n"
        "environments:\n"
        "  prod: {pools: {shared: {accelerator: nvidia-l4, machine: g2-standard-8, nodes: {min: 1, max: 20}}}}\n"
        "  local: {pools: {shared: {accelerator: cpu, vram_gib: 16}}, workloads: {writer: {replicas: {max: 1}},\n"
        "    mockups: {replicas: {max: 1}}}}\n"
        "  sleepy:\n"
        "    pools: {cut: {accelerator: nvidia-a100-80gb, machine: a2-ultragpu-1g, mig: 2g.20gb}}\n"
        "    workloads: {writer: {residency: sleep, gpu: {asleep_gib: 2}, replicas: {max: 3}},\n"
        "      mockups: {replicas: {max: 2}}}\n"
        "  awake:\n"
        "    pools: {shared: {accelerator: nvidia-l4, machine: g2-standard-8}}\n"
        "    workloads: {writer: {residency: sleep, replicas: {max: 1}}, mockups: {replicas: {max: 1}}}\n"
    )
    return file


def test_plan_shows_who_lies_on_each_gpu_and_the_cost(shared: Path) -> None:
    done = run("plan", "-f", str(shared), "-e", "prod")
    assert "prod: 8 GPUs with every replica, 1 at minimum" in done.stdout
    assert "GPU 4-8 x5" in done.stdout
    assert "writer, mockups x6" in done.stdout
    assert "one GPU per replica instead" in done.stdout
    assert "saved by sharing" in done.stdout
    assert "No fewer than" not in done.stdout, "eight is proven"


def test_plan_shows_wake_up_room_and_how_many_more_are_at_home_than_fit(shared: Path) -> None:
    done = run("plan", "-f", str(shared), "-e", "sleepy")
    assert "pool cut: nvidia-a100-80gb cut into 2g.20gb, 19 GiB each, up to 1 node" in done.stdout
    assert re.search(r"GPU 1  WWWWWWWMM..~{13}  1.5 GiB free  writer x3, mockups", done.stdout)
    words = " ".join(done.stdout.split())
    assert "~ 10.0 GiB of each GPU are kept free for whichever wakes." in words
    assert "5 replicas at home, 2 more than fit at once." in words
    assert "12, 2 asleep" in done.stdout
    lines = done.stdout.splitlines()
    wrapped = lines[next(i for i, line in enumerate(lines) if line.startswith("  ~")) + 1]
    assert wrapped.startswith("    ")
    assert wrapped.strip()


def test_the_names_beside_a_bar_are_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(
        "workloads:\n"
        "  large: {mockup: {}, gpu: {vram_gib: 5}}\n"
        "  many: {mockup: {}, gpu: {vram_gib: 2}, replicas: {min: 3}}\n"
        "environments: {local: {pools: {p: {accelerator: cpu, vram_gib: 12}}}}\n"
    )
    assert re.search(r"GPU 1  M{12}L{10}.{2}  1.0 GiB free  many x3, large", run("plan", "-f", str(file)).stdout)


def test_where_no_pool_has_a_price_there_is_no_table_of_zeros(tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(
        "workloads: {m: {mockup: {}, gpu: {vram_gib: 4}}}\n"
        "environments: {local: {pools: {p: {accelerator: nvidia-l4}}}}\n"
    )
    out = run("plan", "-f", str(file)).stdout
    assert "note no price known for pool p; give it usd_per_h" in out
    assert "USD a month" not in out
    assert "List prices" not in out


def test_plan_says_when_all_that_sleep_fit_at_once(shared: Path) -> None:
    done = run("plan", "-f", str(shared), "-e", "awake")
    assert "2 replicas at home, which all fit at once." in " ".join(done.stdout.split())


def test_plan_says_what_no_packing_could_beat_where_it_is_not_proven(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cotenant.gpu.plan.Plan.gpus_lower_bound", property(lambda _: 7))
    done = run("plan", "-f", str(shared), "-e", "prod")
    assert "No fewer than 7 GPUs could do, however packed." in done.stdout


def test_a_piped_plan_has_no_escape_codes_and_fits_eighty_columns() -> None:
    done = child("from cotenant.cli import main; main(['plan', '-e', 'prod'])", COLUMNS="80")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_many_workloads_still_fit_eighty_columns(tmp_path: Path) -> None:
    workloads = "\n".join(
        f"  a-rather-long-name-of-a-workload-{i}: {{mockup: {{max_size_px: 64}}, gpu: {{vram_gib: 0.5}}}}"
        for i in range(80)
    )
    file = tmp_path / "platform.yaml"
    file.write_text(
        f"workloads:\n{workloads}\nenvironments: {{local: {{pools: {{p: {{accelerator: cpu, vram_gib: 50}}}}}}}}\n"
    )
    done = child(f"from cotenant.cli import main; main(['plan', '-f', {str(file)!r}])", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_a_wrong_file_ends_with_one_line_each_on_stderr_and_code_two(tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text("workloads: {m: {mockup: {}, gpu: {vram_gib: -1}}}\nenvironments: {local: {}}\n")
    done = run("plan", "-f", str(file))
    assert done.exit_code == 2
    assert done.stdout == ""
    assert [line.split(":")[1] for line in done.stderr.splitlines()] == ["1", "2"]
    assert "Traceback" not in done.stderr


def test_a_platform_that_does_not_fit_ends_with_code_two(tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(
        "workloads: {m: {mockup: {}, gpu: {vram_gib: 9}}}\n"
        "environments: {local: {pools: {p: {accelerator: cpu, vram_gib: 4}}}}\n"
    )
    done = run("plan", "-f", str(file))
    assert done.exit_code == 2
    assert done.stderr.startswith(f"{file}:1: m needs 9 GiB, but the largest GPU it may use")
    assert done.stderr.count("\n") == 1


def test_a_missing_environment_ends_with_code_two() -> None:
    done = run("plan", "-f", str(PLATFORM), "-e", "pord")
    assert done.exit_code == 2
    assert "no environment 'pord'; it has local, dev, staging, prod; did you mean prod?" in done.stderr


def test_a_bug_is_not_hidden_as_a_clean_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cotenant.cli.plan.make_plan", lambda _: 1 / 0)
    done = run("plan", "-f", str(PLATFORM))
    assert isinstance(done.exception, ZeroDivisionError)


def test_compile_prints_yaml_that_is_the_serve_config() -> None:
    from cotenant.cli.options import with_budgets
    from cotenant.config import load_platform
    from cotenant.manifests.serve import serve_config

    done = run("compile", "-f", str(PLATFORM), "-e", "dev")
    platform, _ = with_budgets(load_platform(PLATFORM, "dev"))
    assert yaml.safe_load(done.stdout) == serve_config(platform, make_plan(platform))


def test_schema_is_printed_and_checked() -> None:
    assert json.loads(run("schema").stdout)["title"] == "PlatformFile"
    assert run("schema", "--check").exit_code == 0


def test_a_stale_schema_fails_the_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stale = tmp_path / "schema.json"
    stale.write_text("{}\n")
    monkeypatch.setattr("cotenant.cli.schema.COMMITTED", stale)
    done = run("schema", "--check")
    assert done.exit_code == 1
    assert "cotenant schema --write" in done.stderr


def test_help_lists_every_command_with_its_summary() -> None:
    done = run("--help")
    listed = done.stdout.split("Commands:")[1]
    for command in COMMANDS:
        assert f"\n  {command} " in listed


def test_an_unknown_command_is_a_usage_error() -> None:
    assert run("paln").exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["jobs", "--help"], ["dead", "--help"], ["plan"], ["plan", "--json"], ["compile"], ["schema"]],
)
def test_light_commands_import_nothing_heavy_and_answer_at_once(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from cotenant.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as done:\n"
        "    assert not done.code, done.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    started = time.perf_counter()
    done = child(program)
    took_s = time.perf_counter() - started
    assert done.stderr.splitlines()[-1] == "[]"
    assert took_s < 5, "even a busy machine has no excuse"


def test_plan_works_where_ray_and_torch_are_not_installed() -> None:
    program = (
        f"import sys\nfor name in {HEAVY!r}: sys.modules[name] = None\nfrom cotenant.cli import main\nmain(['plan'])\n"
    )
    done = child(program)
    assert done.returncode == 0, done.stderr
    assert "GPU 1" in done.stdout


def test_a_terminal_without_unicode_gets_the_plan_in_ascii(shared: Path) -> None:
    program = f"from cotenant.cli import main; main(['plan', '-f', {str(shared)!r}])"
    done = child(program, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "WWWWWWWWWWWWWWWWWWMM...." in done.stdout
