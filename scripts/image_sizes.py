#!/usr/bin/env python3
"""Reads images back from an OCI layout and says what they weigh: by layer, by package, against their budgets.

Sizes are compressed bytes, as a node pulls them; 1 MB is 10^6 bytes. What image streaming on GKE refuses (an empty
layer, the same layer twice), an application layer over 5 MB and an image over its budget are faults, and the exit
code says so. Standard library only.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements" / "images"
MB = 1e6
#: Compressed, the base included.
BUDGETS_MB = {"doors": 250, "engines": 5000, "engines-cpu": 1700}
#: What a change of application code may invalidate.
APPLICATION_MB = 5
#: Digest of a tar file with nothing in it, before compression.
EMPTY = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
#: Folders that many packages share.
_NAMESPACES = ("nvidia", "google")


@dataclass(frozen=True)
class Layer:
    """One layer: its digests, its compressed bytes, what made it, and bytes by what they belong to."""

    digest: str
    diff_id: str
    size: int
    made_by: str
    holds: Mapping[str, int]

    @property
    def is_application(self) -> bool:
        return bool(self.holds) and all(part.startswith("app/") or part == "app" for part in self.holds)


@dataclass(frozen=True)
class Image:
    name: str
    config: Mapping[str, Any]
    layers: tuple[Layer, ...]

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.layers)


def read(layout: Path) -> list[Image]:
    """Every image of an OCI layout that is tagged; its name is the tag."""
    index = json.loads((layout / "index.json").read_text())
    return [_image(layout, entry) for entry in index["manifests"]]


def _image(layout: Path, entry: Mapping[str, Any]) -> Image:
    name = entry.get("annotations", {}).get("org.opencontainers.image.ref.name", "image")
    manifest = _blob(layout, entry["digest"])
    while "layers" not in manifest:  # an index: the first image of it that is no attestation
        real = [m for m in manifest["manifests"] if m.get("platform", {}).get("os") != "unknown"]
        manifest = _blob(layout, real[0]["digest"])
    config = _blob(layout, manifest["config"]["digest"])
    makers = [h.get("created_by", "") for h in config["history"] if not h.get("empty_layer")]
    layers = zip(manifest["layers"], config["rootfs"]["diff_ids"], makers, strict=True)
    return Image(name, config["config"], tuple(_layer(layout, *layer) for layer in layers))


def _layer(layout: Path, described: Mapping[str, Any], diff_id: str, made_by: str) -> Layer:
    digest = described["digest"]
    return Layer(digest, diff_id, described["size"], _short(made_by), contents(_path(layout, digest)))


def _path(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _blob(layout: Path, digest: str) -> Any:
    return json.loads(_path(layout, digest).read_text())


def _short(made_by: str) -> str:
    """The instruction without what the builder wrote around it."""
    text = re.sub(r"^/bin/sh -c (#\(nop\) +)?|^RUN +|--mount=\S+ *|# buildkit", "", made_by)
    return " ".join(text.split())


def contents(layer: Path) -> dict[str, int]:
    """Uncompressed bytes of a layer by package, or by folder outside of the virtual environment."""
    found: Counter[str] = Counter()
    with gzip.open(layer) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            if not member.isdir():
                found[belongs_to(member.name)] += member.size
    return dict(found)


def belongs_to(path: str) -> str:
    """`opt/venv/lib/python3.11/site-packages/ray/…` is `ray`, `usr/lib/x/…` is `usr/lib`."""
    parts = path.removeprefix("./").split("/")
    if "site-packages" in parts:
        inner = parts[parts.index("site-packages") + 1 :]
        if inner[0] in _NAMESPACES:
            return "/".join(inner[:2])
        return re.sub(r"(\.libs|-[^-]*\.dist-info)$", "", inner[0])
    return "/".join(parts[:2])


def faults(image: Image) -> Iterator[str]:
    """What is wrong with it, in words."""
    budget = BUDGETS_MB.get(image.name)
    if budget is not None and image.size > budget * MB:
        yield f"{image.name} is {image.size / MB:.0f} MB compressed, more than its budget of {budget}"
    for digest, count in Counter(layer.digest for layer in image.layers).items():
        if count > 1:
            yield f"{image.name} has layer {digest[:19]} {count} times: GKE does not stream such an image"
    for layer in image.layers:
        if layer.diff_id == EMPTY or not layer.holds:
            yield f"{image.name} has an empty layer, made by {layer.made_by[:60]!r}: GKE does not stream such an image"
    application = sum(layer.size for layer in image.layers if layer.is_application)
    if not application:
        yield f"{image.name} has no layer of its application alone"
    if application > APPLICATION_MB * MB:
        yield f"{image.name}: its application weighs {application / MB:.1f} MB, more than {APPLICATION_MB}"
    if not image.layers[-1].is_application:
        yield f"{image.name} has a layer above its application, made by {image.layers[-1].made_by[:60]!r}"


def invalidated(before: Image, after: Image) -> int:
    """Compressed bytes that a node with `before` has to pull for `after`."""
    known = {layer.digest for layer in before.layers}
    return sum(layer.size for layer in after.layers if layer.digest not in known)


def shared(images: Sequence[Image]) -> int:
    """Bytes that a node with all of them holds once and not again."""
    sizes = {layer.digest: layer.size for image in images for layer in image.layers}
    return sum(image.size for image in images) - sum(sizes.values())


def table(image: Image) -> str:
    budget = BUDGETS_MB.get(image.name)
    lines = [
        f"{image.name}: {image.size / MB:.1f} MB compressed" + (f" of {budget}" if budget else ""),
        "",
        "| layer | MB | unpacked | what |",
        "|---|---|---|---|",
    ]
    for layer in image.layers:
        largest = sorted(layer.holds.items(), key=lambda item: -item[1])[:6]
        what = ", ".join(f"{name} {size / MB:.0f}" for name, size in largest if size > MB / 2) or layer.made_by[:60]
        unpacked = sum(layer.holds.values())
        lines.append(f"| {layer.digest[7:15]} | {layer.size / MB:.2f} | {unpacked / MB:.1f} | {what} |")
    return "\n".join(lines)


def expected(image: str) -> str:
    """What the wheels of an image weigh, from its locks: for an image that can't be built here."""
    lines = [f"{image}: wheels, from requirements/images/{image}", "", "| layer | MB | what |", "|---|---|---|"]
    total = 0
    for lock in sorted((LOCKS / image).glob("*.lock")):
        sizes = dict(wheel_sizes(lock.read_text()))
        total += sum(sizes.values())
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:6]
        lines.append(
            f"| {lock.stem} | {sum(sizes.values()) / MB:.1f} | {', '.join(f'{n} {s / MB:.0f}' for n, s in largest)} |"
        )
    return "\n".join([*lines, f"| all | {total / MB:.1f} | |"])


def wheel_sizes(lock: str) -> Iterable[tuple[str, int]]:
    """Package and bytes of its wheel, of each line of a layer's lock."""
    for match in re.finditer(r"^([^=\s]+)==.*# (\d+) bytes$", lock, re.MULTILINE):
        yield match.group(1), int(match.group(2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layout", type=Path, nargs="?", help="OCI layout with the images (build_images --oci)")
    parser.add_argument("--before", type=Path, help="an earlier layout: say what a node would have to pull anew")
    parser.add_argument("--expect", action="append", default=[], choices=BUDGETS_MB, help="of the locks, unbuilt")
    arguments = parser.parse_args()
    for name in arguments.expect:
        print(expected(name), end="\n\n")
    images = read(arguments.layout) if arguments.layout else []
    earlier = {image.name: image for image in read(arguments.before)} if arguments.before else {}
    wrong = []
    for image in images:
        print(table(image), end="\n\n")
        wrong += faults(image)
        if image.name in earlier:
            print(f"to pull where the earlier {image.name} is: {invalidated(earlier[image.name], image) / MB:.2f} MB\n")
    if len(images) > 1:
        print(f"held once by a node with all of them: {shared(images) / MB:.1f} MB")
    if wrong:
        sys.exit("\n".join(f"image_sizes: {fault}" for fault in wrong))


if __name__ == "__main__":
    main()
