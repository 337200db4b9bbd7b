"""An environment on Google Cloud: which project, region and cluster, from which images, under which address."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from cotenant.config.base import Model, Name, Names

#: The version from which GKE keeps active capacity for a CapacityBuffer.
BUFFERS_SINCE = "1.35.2-gke.1842000"

_VERSION = r"^1\.[0-9]{1,3}(\.[0-9]{1,3}(-gke\.[0-9]{1,9})?)?$"
_HOST = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$"

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class ImageDigests(Model):
    """Pins of the two images. Without one an image is named by `tag`."""

    doors: Digest | None = Field(None, description="Digest of the image of head, gateway and ingress.")
    engines: Digest | None = Field(None, description="Digest of the image of the GPU pools.")


class Gke(Model):
    """Where on Google Cloud this environment lives."""

    project: str = Field(min_length=1, pattern=r"^[a-z][a-z0-9-]{2,28}[a-z0-9]$", description="Google Cloud project.")
    region: str = Field(
        min_length=1,
        pattern=r"^[a-z]+-[a-z]+[0-9]{1,2}$",
        description="Region of the cluster, its images and its bucket, e.g. us-central1.",
    )
    zones: Names = Field((), description="Zones of the GPU pools, e.g. [us-central1-a] (default: GKE's choice).")
    cluster: Name | None = Field(None, description="Name of the cluster (default: the platform's).")
    namespace: Name | None = Field(None, description="Kubernetes namespace (default: platform and environment).")
    version: str = Field(
        "1.35.2-gke.1842000",
        pattern=_VERSION,
        description="Least version of the cluster. Below 1.35.2-gke.1842000 spare nodes are kept by placeholder pods.",
    )
    repository: Name | None = Field(
        None, description="Artifact Registry repository of the images, in `region` (default: the platform's name)."
    )
    tag: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$", description="Tag of the images (default: the version)."
    )
    digests: ImageDigests = Field(default_factory=ImageDigests, description="Pins of the images, instead of `tag`.")
    domain: str | None = Field(
        None,
        pattern=_HOST,
        description="Host name of the HTTP door, with TLS by a load balancer (default: inside the cluster only).",
    )
    node_pools: Literal["fixed", "auto"] = Field(
        "fixed",
        description="fixed: node pools made beforehand, with images baked into the node. auto: GKE makes them as a "
        "ComputeClass says.",
    )
    spare_by: Literal["ray", "nodes"] = Field(
        "ray",
        description="Who keeps a pool's spare nodes. ray: as Ray workers that have joined. nodes: as empty nodes, by a "
        "CapacityBuffer or by placeholder pods, which outlive an upgrade of the Ray cluster.",
    )
    upgrade: Literal["new-cluster", "incremental", "none"] = Field(
        "new-cluster",
        description="What a change of images or nodes does. new-cluster: a second Ray cluster beside the first, then "
        "the first goes. incremental: the same in steps, a quarter more GPUs at the most at any time; requests follow "
        "the doors of both (needs a proxy-only subnet). none: nothing until you delete the cluster. Workloads change "
        "in place in any case.",
    )
    baked: bool = Field(
        True, description="GPU nodes come with the images on a secondary boot disk, made by `setup.sh`."
    )
    redis: str | None = Field(
        None,
        pattern=r"^[a-z0-9.-]+:[0-9]{1,5}$",
        description="host:port of a Redis that keeps the state of Ray's head, with a password (default: one in the "
        "namespace).",
    )

    @model_validator(mode="after")
    def _zones_are_in_the_region(self) -> Self:
        for zone in self.zones:
            if not re.fullmatch(rf"{re.escape(self.region)}-[a-z]", zone):
                raise ValueError(f"has zone {zone!r}, which is not in {self.region}; write e.g. {self.region}-a")
        return self

    @model_validator(mode="after")
    def _tag_stays(self) -> Self:
        if self.tag == "latest":
            raise ValueError("has tag latest, which names another image every day; name a version")
        return self

    @property
    def has_buffers(self) -> bool:
        """Whether a cluster of `version` knows CapacityBuffers with active capacity."""
        return _ordered(self.version) >= _ordered(BUFFERS_SINCE)


def _ordered(version: str) -> tuple[int, ...]:
    """`1.35.2-gke.1842000` as numbers. A short version stands for its first patch, so `1.36` is above every 1.35."""
    return tuple(int(number) for number in re.findall(r"\d+", version))
