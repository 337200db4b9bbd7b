#!/usr/bin/env python3
"""Builds the images with docker buildx or buildah, whichever is there, and pushes them to one region's registry.

Nothing is pushed on a base without a digest, nor to a registry of another region than the cluster's: nodes would pull
across regions, slowly and for money. Layers are the same bytes whoever builds them (one fixed time for all files), so
a build without any cache still leaves a node only the layers to pull that changed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import image_sizes
import setup

from cotenant import __version__
from cotenant.config import DEFAULT_FILE, load_platform
from cotenant.errors import CotenantError, EnvironmentFault, PlanError
from cotenant.manifests.site import IMAGES, Site

ROOT = Path(__file__).resolve().parent.parent
#: The file's time of every file in a layer: 2000-01-01, since zip archives know none before 1980.
TIMESTAMP = 946_684_800
TARGETS = (*IMAGES, "engines-cpu")
_PINNED = re.compile(r"@sha256:[0-9a-f]{64}$")
_REGIONAL = re.compile(r"^([a-z]+-[a-z]+[0-9]{1,2})-docker\.pkg\.dev/")


@dataclass(frozen=True)
class Build:
    """One image to build: the target, what it is called, and what the Dockerfile is told."""

    target: str
    reference: str
    base: str | None
    revision: str
    wheels: Path | None = None
    secrets: Mapping[str, Path] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        """What docker buildx and buildah take alike."""
        told = {"VERSION": __version__, "REVISION": self.revision} | ({"BASE": self.base} if self.base else {})
        words = ["--file", "images/Dockerfile", "--target", self.target, "--tag", self.reference]
        for name, value in told.items():
            words += ["--build-arg", f"{name}={value}"]
        for name, file in self.secrets.items():
            words += ["--secret", f"id={name},src={file}"]
        if self.wheels:
            words += ["--build-context", f"wheels={self.wheels}"]
        return words


class Buildah:
    """Builds into its own store; a push or an export comes after."""

    name = "buildah"

    def build(self, build: Build, *, cache: bool) -> list[str]:
        # Without --layers buildah makes one layer of a whole stage, and of packages and application together.
        words = ["--layers", "--timestamp", str(TIMESTAMP), *build.arguments, "."]
        return ["buildah", "build", *([] if cache else ["--no-cache"]), *words]

    def push(self, build: Build, digest_file: Path) -> list[str]:
        return ["buildah", "push", "--digestfile", str(digest_file), build.reference, f"docker://{build.reference}"]

    def export(self, build: Build, layout: Path) -> list[str]:
        return ["buildah", "push", "--quiet", build.reference, f"oci:{layout}:{build.target}"]

    def digest(self, told: str) -> str:
        return told.strip()

    def digest_of(self, reference: str) -> list[list[str]]:
        """Commands of which the last one prints the digest of an image in a registry."""
        shown = ["buildah", "inspect", "--type", "image", "--format", "{{.FromImageDigest}}", reference]
        return [["buildah", "pull", "--quiet", "--policy", "always", reference], shown]


class Buildx:
    """Builds, and pushes or exports as it builds. What was pushed carries provenance and a bill of materials."""

    name = "docker"

    def build(self, build: Build, *, cache: bool) -> list[str]:
        return self._command(build, "--load", *([] if cache else ["--no-cache"]))

    def push(self, build: Build, digest_file: Path) -> list[str]:
        repository, _, _ = build.reference.rpartition(":")
        kept = f"type=registry,ref={repository}:buildcache"
        return self._command(
            build,
            "--output=type=registry,rewrite-timestamp=true",
            f"--cache-from={kept}",
            f"--cache-to={kept},mode=max",
            "--provenance=mode=max",
            "--sbom=true",
            f"--metadata-file={digest_file}",
        )

    def export(self, build: Build, layout: Path) -> list[str]:
        return self._command(build, f"--output=type=oci,tar=false,dest={layout},rewrite-timestamp=true")

    def digest(self, told: str) -> str:
        return str(json.loads(told)["containerimage.digest"])

    def digest_of(self, reference: str) -> list[list[str]]:
        return [["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", reference]]

    def _command(self, build: Build, *more: str) -> list[str]:
        words = ["docker", "buildx", "build", "--platform", "linux/amd64", *build.arguments, *more, "."]
        return ["env", f"SOURCE_DATE_EPOCH={TIMESTAMP}", *words]


Tool = Buildah | Buildx


def find_tool(wanted: str | None) -> Tool:
    """The tool asked for, or the first that is there and answers."""
    tools: dict[str, Tool] = {"buildx": Buildx(), "buildah": Buildah()}
    if wanted:
        return tools[wanted]
    for tool, asked in (("buildx", ["docker", "buildx", "ls"]), ("buildah", ["buildah", "--version"])):
        if shutil.which(asked[0]) and subprocess.run(asked, capture_output=True, check=False).returncode == 0:
            return tools[tool]
    raise EnvironmentFault(
        "building images needs docker with buildx, and its daemon, or buildah, and neither is here; on Debian: "
        "apt-get install buildah"
    )


def wrong_region(registry: str, region: str) -> str | None:
    """Why images in `registry` are not for a cluster in `region`; None if they are."""
    match = _REGIONAL.match(registry)
    if match is None:
        return (
            f"the cluster is in {region}, but {registry} is no Artifact Registry of one region; "
            f"push to {region}-docker.pkg.dev/PROJECT/REPOSITORY"
        )
    if match.group(1) != region:
        return (
            f"the cluster is in {region}, but {registry} is in {match.group(1)}: every node would pull across regions; "
            f"push to {region}-docker.pkg.dev/PROJECT/REPOSITORY"
        )
    return None


def default_base() -> str:
    """The base that the Dockerfile names."""
    match = re.search(r"^ARG BASE=(\S+)$", (ROOT / "images" / "Dockerfile").read_text(), re.MULTILINE)
    assert match is not None
    return match.group(1)


def pinned(base: str, tool: Tool, ask: Callable[[Sequence[str]], str]) -> str:
    """The base with its digest: as given, or as the registry has it now.

    Raises EnvironmentFault: the registry told none.
    """
    if _PINNED.search(base):
        return base
    told = ""
    for command in tool.digest_of(base):
        told = ask(command).strip()
    if not _PINNED.search(f"@{told}"):
        raise EnvironmentFault(
            f"what is pushed needs a base pinned by digest, and {base} could not be looked up; give it as "
            f"--base {base}@sha256:…"
        )
    print(f"build_images: base {base}@{told}")
    return f"{base}@{told}"


def fragment(digests: Mapping[str, str]) -> str:
    """The lines for the platform file's environment."""
    return "gke: {digests: {" + ", ".join(f"{image}: {digest}" for image, digest in digests.items()) + "}}"


def sources(scratch: Path) -> tuple[dict[str, Path], Path | None]:
    """Build secrets and wheels that have the builder look for packages where pip here looks."""
    environment, _ = setup.uv_settings()
    secrets: dict[str, Path] = {}
    if certificates := environment.get("SSL_CERT_FILE"):
        secrets["ca"] = Path(certificates)
    remote = {
        name: environment[name]
        for name in ("UV_DEFAULT_INDEX", "UV_INDEX")
        if environment.get(name) and "file:" not in environment[name]
    }
    if remote:
        secrets["index"] = scratch / "index"
        secrets["index"].write_text("".join(f"{name}='{value}'\n" for name, value in remote.items()))
    for place in environment.get("UV_FIND_LINKS", "").split(","):
        folder = Path(place.removeprefix("file://"))
        if place and folder.is_dir():
            return secrets, folder
    return secrets, None


def revision() -> str:
    """The commit, marked where the tree is not it."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return told.stdout.strip() or "unknown"


def registry_of(arguments: argparse.Namespace) -> tuple[str, str]:
    """Registry and tag. Raises CotenantError: the registry is not in the cluster's region."""
    if arguments.environment is None:
        return arguments.registry or "cotenant", arguments.tag or __version__
    site = Site.of(load_platform(arguments.file, arguments.environment))
    registry = arguments.registry or f"{site.registry_host}/{site.gke.project}/{site.repository}"
    if why := wrong_region(registry + "/", site.gke.region):
        raise PlanError(why)
    return registry, arguments.tag or site.tag


def run(command: Sequence[str]) -> None:
    print("build_images: $", " ".join(command), flush=True)
    if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise EnvironmentFault(f"`{' '.join(command[:3])}` failed with {code}; what it said is above")


def answer(command: Sequence[str]) -> str:
    """What a command prints; nothing if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def build_all(arguments: argparse.Namespace, scratch: Path) -> None:
    registry, tag = registry_of(arguments)
    if arguments.check_region:
        print(f"build_images: {registry} is where the cluster is")
        return
    tool = find_tool(arguments.tool)
    base = pinned(arguments.base or default_base(), tool, answer) if arguments.push else arguments.base
    secrets, wheels = sources(scratch)
    digests: dict[str, str] = {}
    for target in arguments.images:
        build = Build(target, f"{registry}/{target}:{tag}", base, revision(), wheels, secrets)
        # Docker's builder pushes and exports what it builds; buildah does so from its store.
        if tool.name == "buildah" or not (arguments.push or arguments.oci):
            run(tool.build(build, cache=not arguments.no_cache))
        if arguments.push:
            told = scratch / f"{target}.digest"
            run(tool.push(build, told))
            digests[target] = tool.digest(told.read_text())
        if arguments.oci:
            run(tool.export(build, arguments.oci))
    if digests:
        arguments.digests.write_text(json.dumps(digests, indent=2) + "\n")
        print(f"build_images: in {arguments.digests}; for the platform file:\n  {fragment(digests)}")
    if arguments.oci:
        images = image_sizes.read(arguments.oci)
        print(*map(image_sizes.table, images), sep="\n\n")
        if wrong := [fault for image in images for fault in image_sizes.faults(image)]:
            raise PlanError("; ".join(wrong))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="*", metavar="image", help=f"of {', '.join(TARGETS)} (default: the first two)")
    parser.add_argument("-f", "--file", type=Path, default=DEFAULT_FILE, help="platform file")
    parser.add_argument("-e", "--environment", help="take registry and tag from this environment's `gke`")
    parser.add_argument("--registry", help="push here instead, e.g. us-central1-docker.pkg.dev/acme/cotenant")
    parser.add_argument("--tag", help="default: the environment's, or the version")
    parser.add_argument(
        "--base", help="base image (default: the Dockerfile's), pushed only with a digest; looked up if it has none"
    )
    parser.add_argument("--tool", choices=("buildx", "buildah"), help="default: what is there, buildx first")
    parser.add_argument("--no-cache", action="store_true", help="build every layer anew")
    parser.add_argument("--push", action="store_true", help="push, and write the digests")
    parser.add_argument("--digests", type=Path, default=Path("digests.json"), help="file for the pushed digests")
    parser.add_argument("--oci", type=Path, help="also write an OCI layout there, and check sizes and layers")
    parser.add_argument("--check-region", action="store_true", help="only check that the registry is the cluster's")
    arguments = parser.parse_args()
    arguments.images = arguments.images or list(IMAGES)
    if unknown := set(arguments.images) - set(TARGETS):
        parser.error(f"there is no image {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    if arguments.oci:
        arguments.oci = arguments.oci.absolute()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            build_all(arguments, Path(scratch))
        except CotenantError as error:
            print(f"build_images: {error}", file=sys.stderr)
            sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
