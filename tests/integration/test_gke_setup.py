"""`setup.sh` run by bash, with everything that it calls played by `fake_cloud/fake`, which remembers what exists."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.played_cloud import FAKE, Cloud, empty_cloud, ran
from tests.contracts.tools import tool

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash 4.4"),
]
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True
#: At which changes it is stopped: each of them, of so many.
EACH = {"refuse": 17, "kill": 15}


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return empty_cloud(tmp_path)


def test_a_second_run_changes_nothing(cloud: Cloud) -> None:
    first = ran(cloud.run())
    made = cloud.changes
    assert "make container clusters cotenant" in made
    assert [line for line in made if "node-pools" in line] == [
        "make container node-pools dev-front",
        "make container node-pools dev-shared",
        "make container node-pools dev-shared-od",
    ]
    assert made.index("make compute images cotenant-engines-0-1-0") < made.index("make container node-pools dev-shared")
    assert "[13/13] pools" in first
    before = cloud.there()
    ran(cloud.run())
    assert cloud.changes == []
    assert cloud.there() == before


def test_a_dry_run_says_every_command_and_changes_nothing(cloud: Cloud) -> None:
    shown = ran(cloud.run("--dry-run"))
    assert cloud.changes == []
    assert cloud.there() == set()
    assert "would run: gcloud container clusters create cotenant" in shown
    assert "would run: curl --request POST" in shown
    assert "Nothing was changed" in shown
    ran(cloud.run())
    assert "would run" not in ran(cloud.run("--dry-run"))
    ran(cloud.run("--dry-run", "--destroy", "--shared", "--delete-data"))
    assert cloud.changes == []


def test_a_definition_that_nobody_asks_for_any_more_makes_no_node_pool(cloud: Cloud) -> None:
    pools = cloud.folder / "gke" / "node-pools"
    (pools / "dev-old.json").write_text((pools / "dev-front.json").read_text().replace("dev-front", "dev-old"))
    ran(cloud.run())
    assert "container_node-pools_dev-front" in cloud.there()
    assert "container_node-pools_dev-old" not in cloud.there()


def test_a_node_pool_that_the_platform_file_names_no_more_is_told_and_goes_with_the_environment(cloud: Cloud) -> None:
    ran(cloud.run())
    (cloud.memory / "things" / "container_node-pools_dev-old").write_text("digest 0 4\n")
    labelled = [("dev-front", "RUNNING"), ("dev-old", "RUNNING"), ("dev-older", "STOPPING")]
    rows = "".join(f"{name}\t{status}\tcotenant\tdev\n" for name, status in labelled)
    (cloud.memory / "pools").write_text("default-pool\tRUNNING\n" + rows)
    told = cloud.run("--only", "pools")
    assert "node pool dev-old is of this environment, but not in the platform file" in told.stderr
    assert "dev-front is" not in told.stderr and "dev-older is" not in told.stderr
    assert cloud.changes == []
    ran(cloud.run("--destroy", "--yes"))
    assert not any("node-pools" in name for name in cloud.there())


@pytest.mark.parametrize("way", ["refuse", "kill"])
def test_stopped_anywhere_it_goes_on_from_there(cloud: Cloud, way: str) -> None:
    ran(cloud.run())
    whole, steps = cloud.there(), len(cloud.changes)
    for at in range(2, steps + 1, EACH[way]):
        for name in ("things", "policies"):
            shutil.rmtree(cloud.memory / name)
            (cloud.memory / name).mkdir()
        for name in ("apis", "builder"):
            (cloud.memory / name).unlink(missing_ok=True)
        (cloud.memory / way).write_text(str(at))
        stopped = cloud.run()
        if way == "kill":
            assert stopped.returncode != 0, at
        assert not (cloud.memory / way).exists(), at
        ran(cloud.run())
        assert cloud.there() == whole, at


def test_one_step_alone(cloud: Cloud) -> None:
    ran(cloud.run("--only", "network"))
    assert cloud.there() == {
        "compute_networks_cotenant",
        "compute_networks_subnets_cotenant",
        "compute_routers_cotenant",
        "compute_routers_nats_cotenant",
    }
    wrong = cloud.run("--only", "netwrok")
    assert wrong.returncode == 1
    assert "takes one of apis network" in wrong.stderr


def test_a_changed_number_of_nodes_is_changed_in_place(cloud: Cloud) -> None:
    ran(cloud.run())
    cloud.write(most=5)
    ran(cloud.run())
    assert cloud.changes == ["update node pool dev-front"]
    call = next(call for call in cloud.calls if call[:4] == ["gcloud", "container", "node-pools", "update"])
    assert {"--total-min-nodes=1", "--total-max-nodes=5", "--location-policy=BALANCED"} <= set(call)
    ran(cloud.run())
    assert cloud.changes == []


def test_a_pool_of_another_definition_is_left_unless_it_is_to_be_replaced(cloud: Cloud) -> None:
    ran(cloud.run())
    cloud.write(machine="g2-standard-12")
    left = cloud.run()
    ran(left)
    assert cloud.changes == []
    assert "node pool dev-shared was made of another definition" in left.stderr
    ran(cloud.run("--replace"))
    assert cloud.changes == [
        f"{verb} container node-pools {name}" for name in ("dev-shared", "dev-shared-od") for verb in ("delete", "make")
    ]


def test_without_pushed_images_it_stops_before_what_needs_them(cloud: Cloud) -> None:
    (cloud.memory / "images").write_text("")
    stopped = cloud.run()
    assert stopped.returncode == 1
    assert "us-central1-docker.pkg.dev/acme/cotenant/engines:0.1.0" in stopped.stderr
    assert "container_clusters_cotenant" in cloud.there()
    assert not any("node-pools" in name for name in cloud.there())


def test_a_bucket_elsewhere_and_an_old_cluster_are_refused(cloud: Cloud) -> None:
    (cloud.memory / "things" / "storage_buckets_gs___acme-results").write_text("EUROPE-WEST4\n")
    refused = cloud.run()
    assert refused.returncode == 1
    assert "gs://acme-results is in europe-west4 and the cluster in us-central1" in refused.stderr
    (cloud.memory / "things" / "storage_buckets_gs___acme-results").unlink()
    (cloud.memory / "things" / "container_clusters_cotenant").write_text("1.34.1-gke.5\n")
    refused = cloud.run()
    assert refused.returncode == 1
    assert "runs 1.34.1-gke.5 and the platform file asks for 1.35.2-gke.1842000" in refused.stderr


def test_the_subscription_of_another_environment_is_not_taken(cloud: Cloud) -> None:
    (cloud.memory / "things" / "pubsub_subscriptions_jobs-cotenant").write_text("cotenant prod\n")
    refused = cloud.run("--only", "queue")
    assert refused.returncode == 1
    assert "jobs-cotenant in project acme is that of cotenant prod" in refused.stderr
    assert cloud.changes == []


def test_what_cannot_be_looked_up_is_not_taken_for_missing(cloud: Cloud) -> None:
    bin_folder = cloud.folder / "bin"
    (bin_folder / "gcloud").unlink()
    (bin_folder / "gcloud").write_text('#!/bin/bash\necho "ERROR: PERMISSION_DENIED: no" >&2\nexit 1\n')
    (bin_folder / "gcloud").chmod(0o755)
    for options in ((), ("--destroy", "--yes")):
        refused = cloud.run("--only", "network", *options) if not options else cloud.run(*options)
        assert refused.returncode == 1
        assert "PERMISSION_DENIED" in refused.stderr


def told(cloud: Cloud, error: str, status: int = 1) -> subprocess.CompletedProcess[str]:
    """The script after gcloud fails each look-up so; what would change something is only said."""
    program = cloud.folder / "bin" / "gcloud"
    program.unlink(missing_ok=True)
    program.write_text(f"#!/bin/bash\ncat >&2 <<'END'\n{error}\nEND\nexit {status}\n")
    program.chmod(0o755)
    return cloud.run("--dry-run", "--only", "network")


@pytest.mark.parametrize(
    "error",
    [
        "ERROR: (gcloud.x.describe) PERMISSION_DENIED: no right in project 140455404, or it may not exist: not found",
        "ERROR: (gcloud.x.describe) ResponseError: code=403, message=Required permission. NOT_FOUND is not told",
        "ERROR: (gcloud.x.describe) User [a] does not have permission to access projects [p404] (or it was not found)",
        "ERROR: (gcloud.storage.buckets.describe) HTTPError 403: a does not have storage.buckets.get access",
        'Error from server (Forbidden): namespaces "x" is forbidden: User "404" cannot get resource',
        "ERROR: gcloud crashed (ConnectionError): host 404.example.org not found",
        "ERROR: (gcloud.auth) credentials were not found",
    ],
    ids=["denied", "container", "words", "storage", "kubectl", "network", "logged-out"],
)
def test_no_right_and_no_network_are_never_taken_for_missing(cloud: Cloud, error: str) -> None:
    refused = told(cloud, error)
    assert refused.returncode == 1
    assert "could not look with" in refused.stderr and error in refused.stderr


@pytest.mark.parametrize(
    "error",
    [
        "ERROR: (gcloud.pubsub.topics.describe) NOT_FOUND: Resource not found (resource=jobs).",
        "ERROR: (gcloud.container.clusters.describe) ResponseError: code=404, message=Not found: projects/acme403/x.",
        "ERROR: (gcloud.container.clusters.describe) x\nNo cluster named 'cotenant' in acme.",
        "ERROR: (gcloud.storage.buckets.describe) gs://acme-results not found: 404.",
        "ERROR: (gcloud.storage.buckets.get-iam-policy) HTTPError 404: The specified bucket does not exist.",
        "ERROR: (gcloud.compute.networks.describe) Could not fetch resource:\n"
        " - The resource 'projects/acme/global/networks/cotenant' was not found",
        "ERROR: (gcloud.compute.routers.nats.describe) NAT `cotenant` not found",
        "ERROR: (gcloud.artifacts.docker.images.describe) Image not found.",
        'Error from server (NotFound): namespaces "cotenant-dev" not found',
        "ERROR: (gcloud.x.describe) PERMISSION_DENIED: X has not been used in project 4 before. SERVICE_DISABLED",
    ],
    ids=["grpc", "container", "cluster", "bucket", "policy", "compute", "nat", "image", "kubectl", "service-off"],
)
def test_what_google_says_is_not_there_is_missing(cloud: Cloud, error: str) -> None:
    assert "would run: gcloud compute networks create cotenant" in ran(told(cloud, error))


@pytest.mark.parametrize(
    ("versions", "wish", "made_with"),
    [
        ("1.36.1-gke.100\t1.36.2-gke.7;1.36.1-gke.100", "", None),
        ("1.34.9-gke.1\t1.36.2-gke.7;1.35.3-gke.9;1.35.2-gke.1842000;1.34.9-gke.1", "", "1.35.2-gke.1842000"),
        ("1.34.9-gke.1\t1.36.2-gke.7;1.35.3-gke.9;1.34.9-gke.1", "1.36", "1.36"),
        ("1.34.9-gke.1\t1.36.2-gke.7;1.34.9-gke.1", "latest", "latest"),
        ("", "", None),
    ],
    ids=["default", "oldest-that-will-do", "short", "latest", "unknown"],
)
def test_a_cluster_is_made_with_a_version_that_will_do(
    cloud: Cloud, versions: str, wish: str, made_with: str | None
) -> None:
    (cloud.memory / "versions").write_text(f"{versions}\n")
    ran(cloud.run(CLUSTER_VERSION=wish))
    (call,) = [call for call in cloud.calls if call[:4] == ["gcloud", "container", "clusters", "create"]]
    flags = [flag.partition("=")[2] for flag in call if flag.startswith("--cluster-version")]
    assert flags == ([made_with] if made_with else [])


@pytest.mark.parametrize("wish", ["", "1.34", "1.35.1-gke.3"])
def test_a_channel_without_a_version_that_will_do_is_told_before_a_cluster_is_made(cloud: Cloud, wish: str) -> None:
    (cloud.memory / "versions").write_text("1.34.9-gke.1\t1.35.1-gke.3;1.34.9-gke.1\n")
    refused = cloud.run(CLUSTER_VERSION=wish)
    assert refused.returncode == 1
    assert "needs a cluster of version 1.35.2-gke.1842000 or later (gke.version)" in refused.stderr
    assert "has 1.35.1-gke.3 at the most" in refused.stderr
    assert "lower gke.version" in refused.stderr
    assert "container_clusters_cotenant" not in cloud.there()


def test_ray_ends_before_its_namespace_and_says_how_far_it_is(cloud: Cloud) -> None:
    ran(cloud.run())
    (cloud.memory / "ray").write_text("rayservice.ray.io/cotenant\nraycluster.ray.io/cotenant-a\n")
    shown = ran(cloud.run("--destroy", "--dry-run"))
    assert "would run: kubectl delete rayservices.ray.io --all --namespace=cotenant-dev --wait=false" in shown
    shown = ran(cloud.run("--destroy", "--yes"))
    assert cloud.changes.index("delete rayservices") < cloud.changes.index("delete namespace cotenant-dev")
    assert (cloud.memory / "ray").read_text() == ""
    assert "for 5400 s at the most" in shown


def test_ray_that_does_not_end_keeps_its_namespace(cloud: Cloud) -> None:
    ran(cloud.run())
    (cloud.memory / "ray").write_text("raycluster.ray.io/cotenant-a\n" * 3)
    refused = cloud.run("--destroy", "--yes", RAY_END_S="0")
    assert refused.returncode == 1
    assert "kubectl describe raycluster.ray.io/cotenant-a --namespace=cotenant-dev" in refused.stderr
    assert "namespace_cotenant-dev" in cloud.there()
    ran(cloud.run("--destroy", "--yes"))
    assert "namespace_cotenant-dev" not in cloud.there()


def test_deleting_asks_for_the_clusters_name(cloud: Cloud) -> None:
    ran(cloud.run())
    refused = cloud.run("--destroy", typed="something\n")
    assert refused.returncode == 1
    assert "nothing was deleted" in refused.stderr
    assert cloud.changes == []
    ran(cloud.run("--destroy", typed="cotenant\n"))
    assert "delete namespace cotenant-dev" in cloud.changes


def test_deleting_goes_backwards_and_keeps_results_and_what_is_shared(cloud: Cloud) -> None:
    ran(cloud.run())
    ran(cloud.run("--destroy", "--yes"))
    deleted = [line.removeprefix("delete ") for line in cloud.changes if line.startswith("delete ")]
    order = [
        "namespace cotenant-dev",
        "container node-pools dev-shared-od",
        "container node-pools dev-shared",
        "container node-pools dev-front",
        "certificate-manager maps entries cotenant-dev-http",
        "certificate-manager maps cotenant-dev-http",
        "compute addresses cotenant-dev-http",
        "pubsub subscriptions jobs-cotenant",
        "pubsub topics jobs",
        "iam service-accounts cotenant-dev@acme.iam.gserviceaccount.com",
    ]
    assert [deleted.index(each) for each in order] == sorted(deleted.index(each) for each in order)
    left = cloud.there()
    assert "storage_buckets_gs___acme-results" in left
    assert {"container_clusters_cotenant", "artifacts_repositories_cotenant", "compute_networks_cotenant"} <= left
    assert not [name for name in left if "pubsub" in name or "dev" in name]
    assert "serviceAccount:cotenant-dev@" not in "".join(
        each.read_text() for each in (cloud.memory / "policies").glob("storage_*")
    )
    ran(cloud.run("--destroy", "--yes"))
    assert [line for line in cloud.changes if not line.startswith("delete objects")] == []


def test_deleting_all_leaves_nothing(cloud: Cloud) -> None:
    ran(cloud.run())
    ran(cloud.run("--destroy", "--shared", "--delete-data", "--yes"))
    assert cloud.there() == {"storage_buckets_gs___acme-weights", "deployment_kuberay-operator"}
    ran(cloud.run("--destroy", "--shared", "--delete-data", "--yes"))
    assert cloud.changes == []


def test_a_cluster_that_others_use_is_not_deleted(cloud: Cloud) -> None:
    ran(cloud.run())
    labelled = [("prod-shared", "cotenant\tprod"), ("dev-front", "cotenant\tdev"), ("x", "other\tdev")]
    rows = "".join(f"{name}\tRUNNING\t{labels}\n" for name, labels in labelled)
    (cloud.memory / "pools").write_text("default-pool\tRUNNING\n" + rows)
    refused = cloud.run("--destroy", "--shared", "--yes")
    assert refused.returncode == 1
    assert "still has node pools of other environments: prod-shared, x." in refused.stderr
    assert "container_clusters_cotenant" in cloud.there()


def test_topics_of_another_environment_are_not_deleted(cloud: Cloud) -> None:
    ran(cloud.run())
    (cloud.memory / "things" / "pubsub_topics_jobs").write_text("cotenant prod\n")
    ran(cloud.run("--destroy", "--yes"))
    assert [name for name in cloud.there() if "pubsub" in name] == ["pubsub_topics_jobs"]


def test_deleting_that_was_stopped_goes_on(cloud: Cloud) -> None:
    ran(cloud.run())
    (cloud.memory / "refuse").write_text("4")
    assert cloud.run("--destroy", "--shared", "--delete-data", "--yes").returncode == 1
    ran(cloud.run("--destroy", "--shared", "--delete-data", "--yes"))
    assert cloud.there() == {"storage_buckets_gs___acme-weights", "deployment_kuberay-operator"}


def test_the_script_is_clean_to_shellcheck(cloud: Cloud) -> None:
    if tool("shellcheck") is None:
        pytest.skip("needs shellcheck (Debian: shellcheck)")
    for script in (cloud.folder / "gke" / "setup.sh", FAKE):
        done = subprocess.run([str(tool("shellcheck")), str(script)], text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout


@cache
def gcloud_tree() -> dict[str, Any]:
    """Commands and flags of the Google Cloud SDK that is installed; empty if none is."""
    found = shutil.which("gcloud")
    file = Path(found).resolve().parent.parent / "data" / "cli" / "gcloud_completions.py" if found else Path("/nowhere")
    if not file.is_file():
        return {}
    spec = importlib.util.spec_from_file_location("gcloud_completions", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.STATIC_COMPLETION_CLI_TREE)


def strange_flags(call: list[str], tree: dict[str, Any]) -> Iterator[str]:
    node, everywhere = tree, set(tree["flags"])
    for at, word in enumerate(call[1:], start=1):
        if word in node.get("commands", {}):
            node = node["commands"][word]
        elif word.startswith("--"):
            name = word.split("=")[0]
            names = {name, name.replace("--no-", "--", 1)}
            if not names & (set(node.get("flags", {})) | everywhere):
                yield f"{' '.join(call[1:at])} {name}"
        elif node.get("commands"):
            yield f"{' '.join(call[1:at])} {word}"


def test_every_command_and_flag_of_gcloud_exists(cloud: Cloud) -> None:
    tree = gcloud_tree()
    if not tree:
        pytest.skip("needs the Google Cloud SDK, whose list of commands is read (nothing is run)")
    ran(cloud.run())
    calls = cloud.calls
    cloud.write(most=7)
    ran(cloud.run(AUTHORIZED_NETWORKS="203.0.113.0/24", CLUSTER_VERSION="1.36"))
    calls += cloud.calls
    ran(cloud.run("--destroy", "--shared", "--delete-data", "--yes"))
    calls = [call for call in calls + cloud.calls if call[0] == "gcloud"]
    assert len(calls) > 150
    assert sorted({strange for call in calls for strange in strange_flags(call, tree)}) == []
