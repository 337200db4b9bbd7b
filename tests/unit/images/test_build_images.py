"""Building and weighing images: what is refused, what the tools are told, what a report finds. Nothing is built."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cotenant.errors import EnvironmentFault
from scripts import build_images, image_sizes

pytestmark = pytest.mark.unit

PINNED = "python:3.11-slim-bookworm@sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("registry", "says"),
    [
        ("us-central1-docker.pkg.dev/acme/cotenant", None),
        ("europe-west4-docker.pkg.dev/acme/cotenant", "is in europe-west4: every node would pull across regions"),
        ("us-docker.pkg.dev/acme/cotenant", "no Artifact Registry of one region"),
        ("gcr.io/acme", "no Artifact Registry of one region"),
        ("us-central1-docker.pkg.dev.example.com/acme", "no Artifact Registry of one region"),
    ],
    ids=["same region", "another region", "multi-region", "container registry", "look-alike"],
)
def test_images_are_pushed_to_the_clusters_region_and_nowhere_else(registry: str, says: str | None) -> None:
    why = build_images.wrong_region(registry + "/", "us-central1")
    assert why is None if says is None else (why is not None and says in why and "push to us-central1-docker" in why)


@pytest.mark.parametrize("tool", [build_images.Buildx(), build_images.Buildah()], ids=lambda tool: tool.name)
def test_a_base_is_pinned_by_the_digest_that_its_registry_tells(tool: build_images.Tool) -> None:
    asked: list[str] = []

    def ask(command: Sequence[str]) -> str:
        asked.append(" ".join(command))
        return "sha256:" + "a" * 64 + "\n"

    assert build_images.pinned("python:3.11-slim-bookworm", tool, ask) == PINNED
    assert asked and all(command.endswith("python:3.11-slim-bookworm") for command in asked)
    assert build_images.pinned(PINNED, tool, lambda _: pytest.fail("asked for a digest that was given")) == PINNED


@pytest.mark.parametrize("told", ["", "sha256:abc", "sha256:" + "A" * 64])
def test_a_base_whose_digest_nobody_tells_is_not_pushed(told: str) -> None:
    with pytest.raises(EnvironmentFault, match=r"pinned by digest, and .* could not be looked up; give it as --base"):
        build_images.pinned("python:3.11-slim-bookworm", build_images.Buildah(), lambda _: told)


def test_the_default_base_is_the_dockerfiles() -> None:
    assert build_images.default_base() == "docker.io/library/python:3.11-slim-bookworm"


def test_both_tools_are_told_the_same_of_an_image(tmp_path: Path) -> None:
    build = build_images.Build("doors", "here/doors:1", PINNED, "abc", tmp_path, {"ca": tmp_path / "ca.pem"})
    buildah = build_images.Buildah().build(build, cache=True)
    buildx = build_images.Buildx().build(build, cache=True)
    for command in (buildah, buildx):
        text = " ".join(command)
        assert f"--build-arg BASE={PINNED}" in text and "--build-arg REVISION=abc" in text
        assert "--target doors" in text and f"--secret id=ca,src={tmp_path}/ca.pem" in text
        assert f"--build-context wheels={tmp_path}" in text and str(build_images.TIMESTAMP) in text
    assert "--layers" in buildah and "--layers" in build_images.Buildah().build(build, cache=False)


def test_what_buildx_pushes_carries_provenance_and_a_bill_of_materials(tmp_path: Path) -> None:
    build = build_images.Build("doors", "us-central1-docker.pkg.dev/acme/cotenant/doors:1", PINNED, "abc")
    command = build_images.Buildx().push(build, tmp_path / "told")
    assert "--provenance=mode=max" in command and "--sbom=true" in command
    assert "--output=type=registry,rewrite-timestamp=true" in command
    assert "--cache-from=type=registry,ref=us-central1-docker.pkg.dev/acme/cotenant/doors:buildcache" in command


def test_digests_are_told_as_the_platform_file_takes_them(tmp_path: Path) -> None:
    digests = {"doors": "sha256:" + "1" * 64, "engines": "sha256:" + "2" * 64}
    text = build_images.fragment(digests).replace("gke: {", "gke: {project: acme, region: us-central1, ")
    file = tmp_path / "platform.yaml"
    file.write_text(
        "workloads: {mockups: {mockup: {}, gpu: {vram_gib: 2}}}\n"
        f"environments: {{prod: {{pools: {{shared: {{accelerator: nvidia-l4}}}}, {text}}}}}\n"
    )
    platform = build_images.load_platform(file, "prod")
    assert platform.gke is not None and platform.gke.digests.engines == digests["engines"]
    assert build_images.Site.of(platform).image("doors").endswith(f"/doors@{digests['doors']}")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["-e", "prod", "--check-region"], 0, "is where the cluster is"),
        (["-e", "prod", "--check-region", "--registry", "europe-west4-docker.pkg.dev/acme/x"], 2, "is in europe-west4"),
        (["-e", "local", "--check-region"], 2, "has no gke section"),
        (["engine"], 2, "there is no image engine; there are doors, engines, engines-cpu"),
    ],
    ids=["same region", "another region", "no cluster", "misspelt"],
)
def test_the_command_checks_before_it_builds(words: list[str], code: int, says: str) -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, root / "scripts" / "build_images.py", *words],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root / "platform")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert says in done.stdout + done.stderr


def layer(layout: Path, files: dict[str, bytes]) -> tuple[dict[str, object], str]:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    packed = gzip.compress(plain.getvalue(), mtime=0)
    return put(layout, packed), "sha256:" + hashlib.sha256(plain.getvalue()).hexdigest()


def put(layout: Path, blob: bytes) -> dict[str, object]:
    digest = hashlib.sha256(blob).hexdigest()
    folder = layout / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / digest).write_bytes(blob)
    return {"digest": f"sha256:{digest}", "size": len(blob)}


@pytest.fixture
def image(tmp_path: Path) -> Callable[[Sequence[dict[str, bytes]]], image_sizes.Image]:
    """An image of these layers, read back from a layout."""

    def make(parts: Sequence[dict[str, bytes]]) -> image_sizes.Image:
        made = [layer(tmp_path, files) for files in parts]
        history = [{"created_by": f"/bin/sh -c #(nop) COPY {i}"} for i in range(len(parts))]
        history.insert(0, {"created_by": "ENV A=1", "empty_layer": True})  # type: ignore[dict-item]
        config = {"config": {}, "history": history, "rootfs": {"diff_ids": [diff for _, diff in made]}}
        told = put(tmp_path, json.dumps(config).encode())
        manifest = put(tmp_path, json.dumps({"config": told, "layers": [entry for entry, _ in made]}).encode())
        entry = {**manifest, "annotations": {"org.opencontainers.image.ref.name": "doors"}}
        (tmp_path / "index.json").write_text(json.dumps({"manifests": [entry]}))
        (read,) = image_sizes.read(tmp_path)
        return read

    return make


BASE = {"usr/bin/bash": b"b" * 100}
RAY = {"opt/venv/lib/python3.11/site-packages/ray/x.so": b"r" * 1000, "opt/venv/bin/ray": b"#!"}
APP = {"app/cotenant/a.py": b"a", "app/deployments/b.py": b"b"}

Make = Callable[[Sequence[dict[str, bytes]]], image_sizes.Image]


def test_an_image_with_its_application_last_has_no_fault(image: Make) -> None:
    read = image([BASE, RAY, APP])
    assert list(image_sizes.faults(read)) == []
    assert [part.holds for part in read.layers][1] == {"ray": 1000, "opt/venv": 2}
    assert read.layers[2].made_by == "COPY 2"
    assert "| ray" not in image_sizes.table(read) and "doors: 0.0 MB compressed of 250" in image_sizes.table(read)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([BASE, BASE, APP], "2 times: GKE does not stream"),
        ([BASE, {}, APP], "an empty layer"),
        ([BASE, APP, RAY], "a layer above its application"),
        ([BASE, {**RAY, **APP}], "no layer of its application alone"),
    ],
    ids=["twice", "empty", "application not last", "application with packages"],
)
def test_what_would_not_stream_or_pull_too_much_is_a_fault(
    image: Make, parts: list[dict[str, bytes]], says: str
) -> None:
    assert any(says in fault for fault in image_sizes.faults(image(parts)))


def test_an_image_over_its_budget_is_a_fault(image: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(image_sizes.BUDGETS_MB, "doors", 0)
    assert any("more than its budget of 0" in fault for fault in image_sizes.faults(image([BASE, APP])))


def test_a_change_of_the_application_invalidates_its_layer_only(image: Make) -> None:
    before, after = image([BASE, RAY, APP]), image([BASE, RAY, {**APP, "app/cotenant/a.py": b"changed"}])
    assert image_sizes.invalidated(before, after) == after.layers[-1].size
    assert image_sizes.invalidated(before, before) == 0
    assert image_sizes.shared([before, after]) == before.layers[0].size + before.layers[1].size


def test_what_wheels_weigh_is_read_from_the_locks() -> None:
    text = image_sizes.expected("engines")
    assert "nvidia-cublas" in text and "| 1-cuda |" in text
