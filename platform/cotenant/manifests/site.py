"""What an environment is called on Google Cloud: the one place where names are made of the platform file.

Every manifest, node pool and script takes its names from here, so they can't disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cotenant
from cotenant.config import Gke, Platform
from cotenant.errors import PlanError

Image = Literal["doors", "engines"]
IMAGES: tuple[Image, ...] = ("doors", "engines")

#: Where Ray tells the metrics of each node, ours among them.
METRICS_PORT = 8080
#: User and group that the images run as.
USER_ID, GROUP_ID = 1000, 1000
#: Where containers keep what can be made again (`COTENANT_HOME`).
HOME = "/var/lib/cotenant"


@dataclass(frozen=True)
class Site:
    """Names of one environment on Google Cloud."""

    platform: str
    environment: str
    gke: Gke

    @staticmethod
    def of(platform: Platform) -> Site:
        """Raises PlanError: the environment has no `gke`."""
        if platform.gke is None:
            raise PlanError(
                platform.wrong(
                    f"environment {platform.environment} has no gke section, so there is no cluster to write manifests "
                    "for; add e.g. gke: {project: acme, region: us-central1}",
                    "gke",
                )
            )
        return Site(platform.name, platform.environment, platform.gke)

    @property
    def name(self) -> str:
        """What belongs to this environment alone is called so: namespace, service account, …"""
        return f"{self.platform}-{self.environment}"

    @property
    def cluster(self) -> str:
        return self.gke.cluster or self.platform

    @property
    def namespace(self) -> str:
        return self.gke.namespace or self.name

    @property
    def registry_host(self) -> str:
        return f"{self.gke.region}-docker.pkg.dev"

    @property
    def repository(self) -> str:
        """Artifact Registry repository of our images."""
        return self.gke.repository or self.platform

    @property
    def mirror(self) -> str:
        """Artifact Registry repository that passes on images of Docker Hub, so that all come from one region."""
        return f"{self.repository}-docker-hub"

    @property
    def tag(self) -> str:
        return self.gke.tag or cotenant.__version__

    def image(self, image: Image) -> str:
        """Reference of one of our images, by digest where the file pins it."""
        base = f"{self.registry_host}/{self.gke.project}/{self.repository}/{image}"
        digest = getattr(self.gke.digests, image)
        return f"{base}@{digest}" if digest else f"{base}:{self.tag}"

    def mirrored(self, reference: str) -> str:
        """A Docker Hub image (`valkey/valkey:8.1.3-alpine`) as the mirror in this region has it."""
        return f"{self.registry_host}/{self.gke.project}/{self.mirror}/{reference}"

    @property
    def service_account(self) -> str:
        """Id of the Google service account, which is the Kubernetes one's name too (at most 30 characters)."""
        return self.name[:30].rstrip("-")

    @property
    def service_account_email(self) -> str:
        return f"{self.service_account}@{self.gke.project}.iam.gserviceaccount.com"

    @property
    def vm_account(self) -> str:
        """Id of the Google service account of an environment on one VM, whose rights are its own (at most 30)."""
        return f"{self.name[:27].rstrip('-')}-vm"

    @property
    def vm_account_email(self) -> str:
        return f"{self.vm_account}@{self.gke.project}.iam.gserviceaccount.com"

    @property
    def node_account(self) -> str:
        """Id of the Google service account that the cluster's nodes run as (at most 30 characters)."""
        return f"{self.cluster[:24].rstrip('-')}-nodes"

    @property
    def node_account_email(self) -> str:
        return f"{self.node_account}@{self.gke.project}.iam.gserviceaccount.com"

    @property
    def node_image(self) -> str:
        """Name of the disk image with the engines' image in it."""
        digest = self.gke.digests.engines
        version = (
            digest.removeprefix("sha256:")[:12] if digest else self.tag.lower().replace(".", "-").replace("_", "-")
        )
        return f"{self.repository}-engines-{version}"[:63].rstrip("-")

    def pool(self, pool: str) -> str:
        """What a pool is called beside those of other environments: node pool, taint, label (at most 40 characters).

        Raises PlanError: it is longer than GKE allows.
        """
        name = f"{self.environment}-{pool}"
        if len(name) > 40:
            raise PlanError(
                f"pool {pool} of environment {self.environment} would be called {name}, {len(name)} characters where "
                "GKE allows 40; shorten the pool's name or the environment's"
            )
        return name

    @property
    def labels(self) -> dict[str, str]:
        """Labels of everything that belongs to the environment."""
        return {"app.kubernetes.io/part-of": self.platform, "cotenant-environment": self.environment}


#: Label and taint of a pool's nodes: its value is `Site.pool`.
POOL_LABEL = "cotenant-pool"
