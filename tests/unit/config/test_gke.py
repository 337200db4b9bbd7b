"""The gke section, and what two environments in one project may not share."""

from __future__ import annotations

from pathlib import Path

import pytest

from cotenant.config import Gke, load_platform
from cotenant.errors import ConfigError

pytestmark = pytest.mark.unit

FILE = """
workloads: {{mugs: {{mockup: {{}}, gpu: {{vram_gib: 2}}}}}}
environments:
  dev:
    pools: &pools {{front: {{machine: e2-standard-4}}, shared: {{accelerator: nvidia-l4}}}}
    gke: {{project: acme, region: us-central1}}
    {dev}
  prod:
    pools: *pools
    gke: {{project: {project}, region: us-central1}}
"""


def written(
    folder: Path, *, dev: str = "jobs: {topic: jobs-dev, subscription: jobs-dev}", project: str = "acme"
) -> Path:
    file = folder / "platform.yaml"
    file.write_text(FILE.format(dev=dev, project=project))
    return file


def test_environments_of_one_project_with_queues_of_their_own_are_fine(tmp_path: Path) -> None:
    assert load_platform(written(tmp_path), "prod").gke == Gke(project="acme", region="us-central1")


def test_environments_of_one_project_that_share_a_subscription_are_refused_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"platform\.yaml:\d+: environments dev and prod would take each other's jobs"
    ):
        load_platform(written(tmp_path, dev="jobs: {}"), "dev")


def test_other_projects_and_environments_without_jobs_share_nothing(tmp_path: Path) -> None:
    assert load_platform(written(tmp_path, dev="jobs: {}", project="acme-prod"), "prod")
    assert load_platform(written(tmp_path, dev="jobs: {ingresses: 0}"), "prod")


@pytest.mark.parametrize(
    ("gke", "said"),
    [
        ("project: acme, region: us-central1, zones: [europe-west4-a]", "which is not in us-central1"),
        ("project: acme, region: us-central1, tag: latest", "names another image every day"),
        ("project: acme, region: us", "does not look like that"),
        ("project: Acme!, region: us-central1", "does not look like that"),
        ("project: acme, region: us-central1, domain: 'https://a.example'", "does not look like that"),
        ("project: acme, region: us-central1, version: latest", "does not look like that"),
        ("project: acme, region: us-central1, digests: {engines: abc}", "does not look like that"),
        ("project: acme, region: us-central1, clustr: x", "did you mean cluster?"),
    ],
)
def test_what_google_cloud_would_not_take_is_refused(gke: str, said: str, tmp_path: Path) -> None:
    file = written(tmp_path)
    file.write_text(file.read_text().replace("gke: {project: acme, region: us-central1}", f"gke: {{{gke}}}", 1))
    with pytest.raises(ConfigError) as refusal:
        load_platform(file, "dev")
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("version", "knows"),
    [
        ("1.35.2-gke.1842000", True),
        ("1.35.2-gke.1841999", False),
        ("1.35", False),
        ("1.36", True),
        ("1.35.3", True),
        ("1.34.9-gke.9999999", False),
    ],
)
def test_which_versions_know_capacity_buffers(version: str, knows: bool) -> None:
    assert Gke(project="acme", region="us-central1", version=version).has_buffers is knows
