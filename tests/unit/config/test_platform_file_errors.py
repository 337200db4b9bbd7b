"""Whatever is wrong with a platform file is one clear line: where, what is wrong, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from cotenant.config import load_platform
from cotenant.errors import ConfigError, PlanError
from cotenant.gpu.plan import plan as make_plan

pytestmark = pytest.mark.unit

WORKLOADS = "workloads: {mockups: {mockup: {}, gpu: {vram_gib: 1.5}}}\n"
LOCAL = "environments: {local: {pools: {shared: {accelerator: cpu, vram_gib: 12}}}}\n"


def problems(tmp_path: Path, text: str, environment: str = "local") -> list[str]:
    """The lines a user sees, without the folder."""
    file = tmp_path / "platform.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_platform(file, environment)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def workload(inside: str) -> str:
    return f"workloads:\n  writer:\n    {inside}\n" + LOCAL


CASES = {
    "unknown key, nearest named": (
        workload("{mockup: {}, gpu: {vram_gib: 2}, concurency: 3}"),
        "platform.yaml:3: workloads.writer.concurency is not a key here; did you mean concurrency?",
    ),
    "unknown top-level key": (
        WORKLOADS + LOCAL + "gatway: {}\n",
        "platform.yaml:3: gatway is not a key here; did you mean gateway?",
    ),
    "key of an environment at the top": (
        WORKLOADS + LOCAL + "pools: {}\n",
        "platform.yaml:3: pools belongs to an environment; move it under environments.<name>",
    ),
    "unknown key in an environment": (
        WORKLOADS + "environments:\n  local:\n    pools: {a: {accelerator: cpu, vram_gib: 4}}\n    gkee: {}\n",
        "platform.yaml:5: environments.local.gkee is not a key here; did you mean gke?",
    ),
    "unknown kind": (
        workload("{mockupp: {}, gpu: {vram_gib: 2}}"),
        "platform.yaml:3: workloads.writer.mockupp is not a key here; did you mean mockup?",
    ),
    "duplicate key": (
        "workloads:\n  m:\n    mockup: {}\n    gpu: {vram_gib: 1}\n    gpu: {vram_gib: 2}\n" + LOCAL,
        "platform.yaml:5: workloads.m.gpu is given twice (first on line 4); keep one",
    ),
    "asleep above the budget": (
        workload("{mockup: {}, gpu: {vram_gib: 1.5, asleep_gib: 3}}"),
        "platform.yaml:3: workloads.writer.gpu has asleep_gib 3 above vram_gib 1.5; lower asleep_gib",
    ),
    "quantised without a GPU": (
        workload("{image: {model: m, quantization: 4bit}, gpu: {vram_gib: 2}}"),
        "platform.yaml:3: workloads.writer.image.quantization is 4bit, which needs a GPU, and the workload may only "
        "run in shared (cpu); set quantization: none there",
    ),
    "number with a unit": (
        workload("{mockup: {}, gpu: {vram_gib: 5GB}}"),
        "platform.yaml:3: workloads.writer.gpu.vram_gib takes a number of GiB, without unit or quotes; "
        "for '5GB' write 4.657",
    ),
    "number in quotes": (
        workload('{mockup: {}, gpu: {vram_gib: "5"}}'),
        "platform.yaml:3: workloads.writer.gpu.vram_gib takes a number of GiB, without unit or quotes; for '5' write 5",
    ),
    "key in another unit": (
        workload("{mockup: {}, gpu: {vram_mb: 5000}}"),
        "platform.yaml:3: workloads.writer.gpu.vram_mb is not a key here: the unit differs; write vram_gib",
    ),
    "deadline in another unit": (
        workload("{mockup: {}, gpu: {vram_gib: 2}, deadline_ms: 100}"),
        "platform.yaml:3: workloads.writer.deadline_ms is not a key here: the unit differs; write deadline_s",
    ),
    "impossible replica range": (
        workload("{mockup: {}, gpu: {vram_gib: 2}, replicas: {min: 3, max: 2}}"),
        "platform.yaml:3: workloads.writer.replicas has min 3 above max 2; raise max or lower min",
    ),
    "more spare nodes than there may be": (
        "workloads:\n  m: {mockup: {}, gpu: {vram_gib: 2}}\n"
        "environments: {local: {pools: {p: {accelerator: cpu, vram_gib: 8, nodes: {max: 2, spare: 3}}}}}\n",
        "platform.yaml:3: pools.p.nodes has spare 3 above max 2; raise max or lower spare",
    ),
    "negative minimum": (
        workload("{mockup: {}, gpu: {vram_gib: 2}, replicas: {min: -1}}"),
        "platform.yaml:3: workloads.writer.replicas.min should be greater than or equal to 0; got -1",
    ),
    "count that is none": (
        workload("{mockup: {}, gpu: {vram_gib: 2}, concurrency: yes}"),
        "platform.yaml:3: workloads.writer.concurrency takes a whole number; got True",
    ),
    "no budget": (
        workload("{mockup: {}}"),
        "platform.yaml:2: workloads.writer.gpu is missing: The budget of one replica, e.g. gpu: {vram_gib: 5}.",
    ),
    "budget without a value": (
        workload("{mockup: {}, gpu: {vram_gib: }}"),
        "platform.yaml:3: workloads.writer.gpu.vram_gib has no value; give one: VRAM budget of one "
        "replica in GiB, which becomes its share of the GPU (num_gpus); auto takes the estimate of `cotenant fit`.",
    ),
    "no kind": (
        workload("{gpu: {vram_gib: 2}}"),
        "platform.yaml:2: workloads.writer has no kind; say what it serves with one of llm, mockup, image "
        "(e.g. mockup: {})",
    ),
    "two kinds": (
        workload("{mockup: {}, llm: {model: m}, gpu: {vram_gib: 2}}"),
        "platform.yaml:2: workloads.writer is llm and mockup at once; keep one, or make two workloads",
    ),
    "bad name": (
        "workloads:\n  My_Writer: {mockup: {}, gpu: {vram_gib: 1}}\n" + LOCAL,
        "platform.yaml:2: workloads.My_Writer: a name is lower-case letters, digits and dashes, at most 40; "
        "got 'My_Writer'",
    ),
    "MIG profile in capitals": (
        "workloads:\n  m: {mockup: {}, gpu: {vram_gib: 1}}\n"
        "environments: {local: {pools: {shared: {accelerator: nvidia-tesla-a100, mig: 1G.10GB}}}}\n",
        "platform.yaml:3: pools.shared.mig takes a MIG profile in lower case, e.g. 1g.10gb; got '1G.10GB'",
    ),
    "a door's name": (
        "workloads:\n  gateway: {mockup: {}, gpu: {vram_gib: 1}}\n" + LOCAL,
        "platform.yaml:2: workloads.gateway 'gateway' is a front door's name; call the workload something else",
    ),
    "two workloads of one model": (
        "workloads:\n  a: {llm: {model: m}, gpu: {vram_gib: 1}}\n  b: {llm: {model: m}, gpu: {vram_gib: 1}}\n" + LOCAL,
        "platform.yaml:3: workloads.b answers to 'm' and so does a; a request could mean either: rename the workload "
        "or give one of them another model",
    ),
    "unknown pool": (
        workload("{mockup: {}, gpu: {vram_gib: 2}, pools: [fast]}"),
        "platform.yaml:3: workloads.writer.pools names pool 'fast', which environment local lacks; it has shared",
    ),
    "no workloads": ("workloads: {}\n" + LOCAL, "platform.yaml:1: workloads is empty; give at least one"),
    "workloads left out": (LOCAL, "platform.yaml:1: workloads is missing"),
    "no environments": (
        WORKLOADS,
        "platform.yaml:1: environments needs at least one, e.g. "
        "local: {pools: {shared: {accelerator: cpu, vram_gib: 12}}}",
    ),
    "environment without pools": (
        WORKLOADS + "environments:\n  local: {}\n",
        "platform.yaml:3: environment local needs pools, e.g. pools: {shared: {accelerator: cpu, vram_gib: 12}}",
    ),
    "environment that is empty": (
        WORKLOADS + "environments:\n  local:\n",
        "platform.yaml:3: environment local needs pools, e.g. "
        "local: {pools: {shared: {accelerator: cpu, vram_gib: 12}}}",
    ),
    "pools without accelerator": (
        WORKLOADS + "environments:\n  local:\n    pools: {front: {machine: e2-standard-4}}\n",
        "platform.yaml:4: pools have no accelerator, so no workload can run; give one of them one (cpu will do)",
    ),
    "virtual GPU without memory": (
        WORKLOADS + "environments:\n  local:\n    pools:\n      shared: {accelerator: cpu}\n",
        "platform.yaml:5: pools.shared has the accelerator cpu and needs vram_gib: how much memory its virtual GPU has",
    ),
    "not YAML": (
        "workloads: {a: 1\n" + LOCAL,
        "platform.yaml:2: is not YAML here: while parsing a flow mapping did not find expected ',' or '}'",
    ),
    "unknown tag": (
        workload("{mockup: {}, gpu: {vram_gib: !!python/name:os.system x}}"),
        "platform.yaml:3: workloads.writer.gpu.vram_gib: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/name:os.system'",
    ),
    "empty": ("", "platform.yaml:1: is empty; it needs at least workloads and environments"),
    "a list": ("- a\n", "platform.yaml:1: needs a mapping at the top, with workloads and environments"),
    "alias of itself": (
        "workloads: &w\n  a: *w\n" + LOCAL,
        "platform.yaml:1: is nested too deeply; does an alias contain itself?",
    ),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES.keys())
def test_a_mistake_is_one_line_with_place_and_next_step(tmp_path: Path, text: str, expected: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_a_missing_file_is_named_with_the_option_that_gives_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml:1: no such file; name one with -f/--file") as caught:
        load_platform(tmp_path / "nowhere.yaml")
    assert caught.value.exit_code == 2


def test_a_folder_is_no_platform_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        load_platform(tmp_path)


def test_a_missing_environment_is_answered_with_those_there_are(tmp_path: Path) -> None:
    two = WORKLOADS + LOCAL.replace("local:", "staging:")
    assert problems(tmp_path, two, "stagin") == [
        "platform.yaml:2: no environment 'stagin'; it has staging; did you mean staging?"
    ]


def test_all_problems_are_told_at_once_and_a_shared_one_only_once(tmp_path: Path) -> None:
    text = (
        "workloads:\n"
        "  a: {mockup: {}, gpu: {vram_gib: -1}}\n"
        "  b: {mockup: {sizee: 1}, gpu: {vram_gib: 1}}\n"
        "environments:\n"
        "  one: {pools: {p: {accelerator: cpu, vram_gib: 4}}}\n"
        "  two: {pools: {p: {accelerator: cpu, vram_gib: 4, nods: 3}}}\n"
    )
    assert [line.split(":")[1] for line in problems(tmp_path, text, "one")] == ["2", "3", "6"]


def test_an_error_is_placed_where_the_environment_overrides(tmp_path: Path) -> None:
    text = (
        "workloads: {m: {mockup: {}, gpu: {vram_gib: 1}, replicas: {min: 2, max: 4}}}\n"
        "environments:\n"
        "  local:\n"
        "    pools: {p: {accelerator: cpu, vram_gib: 4}}\n"
        "    workloads:\n"
        "      m: {replicas: {max: 1}}\n"
    )
    assert problems(tmp_path, text) == [
        "platform.yaml:6: workloads.m.replicas has min 2 above max 1; raise max or lower min"
    ]


def test_a_workload_only_an_environment_has_is_reported_there(tmp_path: Path) -> None:
    text = WORKLOADS + (
        "environments:\n  local:\n    pools: {p: {accelerator: cpu, vram_gib: 4}}\n"
        "    workloads:\n      extra: {mockup: {}}\n"
    )
    assert problems(tmp_path, text)[0].startswith("platform.yaml:6: workloads.extra.gpu is missing")


def test_a_misspelled_section_is_not_reported_as_missing_too(tmp_path: Path) -> None:
    lines = problems(tmp_path, "worklods: {m: {mockup: {}, gpu: {vram_gib: 1}}}\n" + LOCAL)
    assert lines == ["platform.yaml:1: worklods is not a key here; did you mean workloads?"]


def test_an_environments_workload_that_is_nearly_a_shared_one_names_it(tmp_path: Path) -> None:
    text = WORKLOADS + LOCAL.replace("}}}}", "}}, workloads: {mockup: {replicas: {max: 2}}}}}")
    (line,) = problems(tmp_path, text)
    assert line.startswith("platform.yaml:2: workloads.mockup.gpu is missing")
    assert line.endswith("did you mean mockups?")


def test_aliases_of_aliases_are_refused_and_not_written_out(tmp_path: Path) -> None:
    text = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        text += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    (line,) = problems(tmp_path, text + WORKLOADS + LOCAL)
    assert line == "platform.yaml:1: holds over 200,000 values, aliases written out; use fewer aliases"


def test_a_number_of_thousands_of_digits_is_refused_in_plain_words(tmp_path: Path) -> None:
    text = workload("{mockup: {}, gpu: {vram_gib: 2}, queue: 1" + "0" * 5000 + "}")
    assert problems(tmp_path, text) == ["platform.yaml:3: workloads.writer.queue: takes no number of 5,001 digits"]


def test_a_folder_and_a_file_that_is_no_text_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1: can't be read: Is a directory; name one with -f"):
        load_platform(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: a\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml:2: is not text in UTF-8 here \(byte 13\)"):
        load_platform(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("inside", "pools", "expected"),
    [
        ("{mockup: {}, gpu: {vram_gib: 40}}", "{accelerator: cpu, vram_gib: 12}", "3: writer needs 40 GiB, but"),
        (
            "{mockup: {}, gpu: {vram_gib: 5}, replicas: {min: 3}}",
            "{accelerator: cpu, vram_gib: 12}",
            "3: writer needs 3 x 5 GiB at minimum",
        ),
        ("{mockup: {}, gpu: {vram_gib: 5}}", "{accelerator: L4}", "4: pool shared has the accelerator 'L4'; did you"),
        (
            "{mockup: {}, gpu: {vram_gib: 5}}",
            "{accelerator: nvidia-l4, machine: a2-highgpu-1g}",
            "4: pool shared says nvidia-l4, but a2-highgpu-1g has nvidia-tesla-a100",
        ),
    ],
)
def test_what_does_not_fit_names_the_line_to_change(tmp_path: Path, inside: str, pools: str, expected: str) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(f"workloads:\n  writer:\n    {inside}\nenvironments: {{local: {{pools: {{shared: {pools}}}}}}}\n")
    with pytest.raises(PlanError) as caught:
        make_plan(load_platform(file))
    assert str(caught.value).startswith(f"{file}:{expected}")
