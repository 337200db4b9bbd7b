"""Budgets before the plan: auto filled in, too small ones refused on their line, what can't be checked is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cotenant.config import Platform, Workload, load_platform
from cotenant.errors import PlanError
from cotenant.gpu.fit import Facts, FactsMissing, facts_of
from cotenant.gpu.fit.budgets import Budgeted, budgeted
from cotenant.gpu.fit.bundled import IMAGES, LLMS
from cotenant.gpu.plan import plan

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
CPU = {"shared": {"accelerator": "cpu", "vram_gib": 12}}
L4 = {"accelerator": "nvidia-l4"}


def platform(folder: Path, pools: dict[str, Any] | None = None, **workloads: dict[str, Any]) -> Platform:
    file = folder / "platform.yaml"
    file.write_text(yaml.safe_dump({"workloads": workloads, "environments": {"local": {"pools": pools or CPU}}}))
    return load_platform(file, "local")


def nowhere(_: Workload) -> Facts | None:
    return None


def never(_: Workload) -> Facts | None:
    raise AssertionError("nobody was to be asked")


def filled(made: Platform) -> Budgeted:
    return budgeted(made, facts_of, never)


def writer(vram_gib: float | str, **more: Any) -> dict[str, Any]:
    return {"llm": {"model": "smollm2-135m", "context_tokens": 2048}, "gpu": {"vram_gib": vram_gib}, **more}


def test_auto_becomes_the_typical_need_rounded_up(tmp_path: Path) -> None:
    done = filled(platform(tmp_path, writer=writer("auto"), mugs={"mockup": {}, "gpu": {"vram_gib": "auto"}}))
    assert done.warnings == ()
    assert done.platform.workloads["writer"].gpu.gib == pytest.approx(2.2, abs=0.3)
    assert done.platform.workloads["mugs"].gpu.gib == pytest.approx(2.8, abs=0.3)
    assert plan(done.platform).gpus_needed == 1
    assert done.platform.workloads["writer"].gpu.asleep_gib is None


def test_of_several_accelerators_the_largest_need_wins(tmp_path: Path) -> None:
    both = {"shared": CPU["shared"], "gpus": L4}
    alone = {name: {"gpus": L4, **CPU}[name] for name in ("shared", "gpus")}
    each = [filled(platform(tmp_path, {name: pool}, writer=writer("auto"))) for name, pool in alone.items()]
    together = filled(platform(tmp_path, both, writer=writer("auto")))
    chosen = filled(platform(tmp_path, both, writer=writer("auto", pools=["gpus"])))
    needs = [done.platform.workloads["writer"].gpu.gib for done in each]
    assert together.platform.workloads["writer"].gpu.gib == max(needs)
    assert chosen.platform.workloads["writer"].gpu.gib == needs[1]


def test_auto_takes_no_more_than_a_gpu_has_and_says_so(tmp_path: Path) -> None:
    many = writer("auto", concurrency=200)
    many["llm"]["context_tokens"] = 8192
    done = filled(platform(tmp_path, {"p": {"accelerator": "cpu", "vram_gib": 4}}, writer=many))
    assert done.platform.workloads["writer"].gpu.gib == 4
    (warning,) = done.warnings
    assert warning.startswith("writer: auto would be ")
    assert "the largest GPU it may use has 4, which serves fewer at once" in warning


def test_auto_that_fits_nowhere_is_left_for_the_plan_to_refuse(tmp_path: Path) -> None:
    done = filled(platform(tmp_path, {"p": {"accelerator": "cpu", "vram_gib": 1}}, writer=writer("auto")))
    with pytest.raises(PlanError, match="the largest GPU it may use"):
        plan(done.platform)


def test_a_budget_that_can_serve_nothing_is_refused_on_its_line_with_its_parts(tmp_path: Path) -> None:
    made = platform(tmp_path, mugs={"mockup": {}, "gpu": {"vram_gib": 1}}, writer=writer(1.5))
    with pytest.raises(PlanError) as refused:
        filled(made)
    first, second = str(refused.value).splitlines()
    assert first.startswith(f"{tmp_path}/platform.yaml:")
    assert "mugs needs 1.4 GiB on cpu to serve anything (renders 0.98 + process 0.25 + artwork" in first
    assert "but its vram_gib is 1; raise it (2.8 is what auto takes), or lower max_size_px" in first
    assert "writer needs 1.9 GiB on cpu" in second
    assert second.endswith("or lower context_tokens")


def test_one_of_several_pools_that_is_too_small_is_named(tmp_path: Path) -> None:
    pools = {**CPU, "gpus": L4}
    with pytest.raises(PlanError, match=r"on cpu \(pool shared\)"):
        filled(platform(tmp_path, pools, writer=writer(1.5)))
    assert filled(platform(tmp_path, pools, writer=writer(1.5, pools=["gpus"]))).warnings == ()


def test_a_pool_whose_gpus_are_smaller_than_the_budget_does_not_count(tmp_path: Path) -> None:
    pools = {"tiny": {"accelerator": "cpu", "vram_gib": 1}, "gpus": L4}
    assert filled(platform(tmp_path, pools, writer=writer(1.5))).warnings == ()


def test_the_examples_budgets_are_fair_in_every_environment() -> None:
    for environment in ("local", "dev", "staging", "prod"):
        made = load_platform(ROOT / "deployments/platform.yaml", environment)
        done = budgeted(made, facts_of, never)
        assert plan(done.platform).gpus_needed > 0


def test_what_a_sleeper_holds_is_filled_in_unless_the_file_says(tmp_path: Path) -> None:
    done = filled(
        platform(
            tmp_path,
            a=writer(5, residency="sleep"),
            b={"mockup": {}, "gpu": {"vram_gib": 2, "asleep_gib": 0.7}, "residency": "on-demand"},
            c={"image": {"model": "tiny-inpaint"}, "gpu": {"vram_gib": "auto"}, "residency": "sleep"},
        )
    )
    held = {name: workload.gpu.asleep_gib for name, workload in done.platform.workloads.items()}
    assert held["a"] == pytest.approx(1.6, abs=0.2)
    assert held["b"] == 0.7
    assert held["c"] == pytest.approx(0.5, abs=0.1)
    assert all(asleep < done.platform.workloads[name].gpu.gib for name, asleep in held.items() if asleep)


def test_a_sleepers_floor_is_never_above_its_budget(tmp_path: Path) -> None:
    small = {"mockup": {"max_size_px": 16, "templates": ["poster"]}, "gpu": {"vram_gib": 0.35}, "residency": "sleep"}
    gpu = filled(platform(tmp_path, p=small)).platform.workloads["p"].gpu
    assert gpu.asleep_gib is not None
    assert gpu.asleep_gib <= 0.35


def test_a_hub_models_floor_does_not_depend_on_what_this_machine_happens_to_have(tmp_path: Path) -> None:
    hub = {"llm": {"model": "org/model", "context_tokens": 512}, "gpu": {"vram_gib": 5}, "residency": "sleep"}
    made = platform(tmp_path, w=hub)
    known = budgeted(made, lambda _: LLMS["smollm2-135m"](), never).platform.workloads["w"].gpu
    unknown = budgeted(made, nowhere, never).platform.workloads["w"].gpu
    assert known == unknown
    auto = platform(tmp_path, w={**hub, "gpu": {"vram_gib": "auto"}})
    assert budgeted(auto, nowhere, lambda _: LLMS["smollm2-135m"]()).platform.workloads["w"].gpu.asleep_gib


def test_only_auto_asks_from_afar(tmp_path: Path) -> None:
    hub = {"image": {"model": "org/painter"}}
    declared = platform(tmp_path, p={**hub, "gpu": {"vram_gib": 8}})
    done = budgeted(declared, nowhere, never)
    assert done.platform.workloads["p"].gpu.gib == 8
    assert done.warnings == (
        "not checked, since sizes of their models are not on this machine: budgets of p (8 GiB); "
        "`cotenant fit -f FILE -e ENV` asks the hub",
    )
    auto = platform(tmp_path, p={**hub, "gpu": {"vram_gib": "auto"}})
    assert budgeted(auto, nowhere, lambda _: IMAGES["tiny-inpaint"]()).platform.workloads["p"].gpu.gib > 0


def test_auto_without_facts_is_refused_on_its_line(tmp_path: Path) -> None:
    auto = {"llm": {"model": "org/model"}, "gpu": {"vram_gib": "auto"}}

    def offline(_: Workload) -> Facts | None:
        raise FactsMissing("the hub can't be reached")

    with pytest.raises(PlanError, match=r"platform.yaml:\d+: w has vram_gib auto: the hub can't be reached"):
        budgeted(platform(tmp_path, w=auto), nowhere, offline)
    stored = {"llm": {"model": "gs://bucket/m"}, "gpu": {"vram_gib": "auto"}}
    with pytest.raises(PlanError, match=r"w has vram_gib auto: sizes of gs://bucket/m can't be read.*write a number"):
        budgeted(platform(tmp_path, w=stored), nowhere, nowhere)


def test_damaged_files_spoil_no_declared_budget(tmp_path: Path) -> None:
    def damaged(_: Workload) -> Facts | None:
        raise FactsMissing("model.safetensors is no whole safetensors file")

    done = budgeted(platform(tmp_path, w=writer(5)), damaged, never)
    assert done.warnings == ("w: its vram_gib 5 is not checked: model.safetensors is no whole safetensors file",)


def test_a_model_of_many_workloads_is_looked_at_once(tmp_path: Path) -> None:
    asked = []

    def counting(workload: Workload) -> Facts | None:
        asked.append(workload.kind)
        return facts_of(workload)

    mugs = {f"m{i}": {"mockup": {}, "gpu": {"vram_gib": 2}} for i in range(5)}
    budgeted(platform(tmp_path, **mugs), counting, never)
    assert asked == ["mockup"]


def test_a_pool_that_contradicts_itself_is_left_for_the_plan_to_refuse(tmp_path: Path) -> None:
    wrong = {"p": {"accelerator": "nvidia-l5"}, "q": {"accelerator": "nvidia-l4"}}
    made = platform(tmp_path, wrong, writer=writer("auto"))
    done = filled(made)
    with pytest.raises(PlanError, match="did you mean nvidia-l4"):
        plan(done.platform)
