"""A cloud for `setup.sh`: a folder with the script, whose commands are played by `fake_cloud/fake`."""

from __future__ import annotations

import base64
import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

from cotenant.cli.queue_names import queue_names
from cotenant.config import load_platform
from cotenant.manifests.gke.setup_script import setup_files

FAKE = Path(__file__).parents[1] / "integration" / "fake_cloud" / "fake"
PLAYED = ("gcloud", "kubectl", "helm", "curl", "git", "go", "sleep", "cotenant")
SECRETS = {"COTENANT_API_KEYS": "acme:very-secret", "COTENANT_WEBHOOK_SECRETS": "acme:whsec_x"}
#: What makes the writer spill to a server that asks for a key.
SPILLS = {"writer: {llm:": "writer: {spill: {url: https://w.example.org, key_env: WRITER_KEY}, llm:"}
FILE = """
workloads:
  mockups: {mockup: {}, gpu: {vram_gib: 2}}
  writer: {llm: {model: gs://acme-weights/qwen3}, gpu: {vram_gib: 12}}
jobs: {store: gs://acme-results/dev}
gateway: {host: 0.0.0.0}
environments:
  dev:
    pools:
      front: {machine: e2-standard-4, nodes: {min: 1, max: MOST}}
      shared: {accelerator: nvidia-l4, machine: MACHINE, spot: true, nodes: {max: 3}}
    gke: {project: acme, region: us-central1, domain: api.example.org}
"""


@dataclass(frozen=True)
class Cloud:
    """A folder with the script, the platform file, the played commands and their memory."""

    folder: Path

    @property
    def memory(self) -> Path:
        return self.folder / "memory"

    def write(self, *, most: int = 2, machine: str = "g2-standard-8", **changes: str) -> None:
        file = self.folder / "platform.yaml"
        text = FILE.replace("MOST", str(most)).replace("MACHINE", machine)
        for old, new in changes.items():
            text = text.replace(old, new)
        file.write_text(text)
        platform = load_platform(file, "dev")
        queue = queue_names(platform)
        for name, text in setup_files(platform, queue, file="platform.yaml").items():
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        names = [f"topics {name}" for name in queue.topics] + [f"subscriptions {name}" for name in queue.subscriptions]
        (self.memory / "queue").write_text("".join(f"{name}\n" for name in names))
        (self.memory / "images").write_text(
            "".join(f"us-central1-docker.pkg.dev/acme/cotenant/{name}:0.1.0\n" for name in ("doors", "engines"))
        )

    def run(self, *options: str, typed: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {
            **os.environ,
            **SECRETS,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "FAKE": str(self.memory),
            **environment,
        }
        for name in ("calls", "changes"):
            (self.memory / name).write_text("")
        return subprocess.run(
            ["bash", "gke/setup.sh", *options], cwd=self.folder, env=settings, input=typed, text=True,
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip

    @property
    def changes(self) -> list[str]:
        return (self.memory / "changes").read_text().splitlines()

    @property
    def calls(self) -> list[list[str]]:
        return [shlex.split(line) for line in (self.memory / "calls").read_text().splitlines()]

    def secret(self, name: str = "cotenant-secrets") -> dict[str, str]:
        """What a Secret has."""
        kept = yaml.safe_load((self.memory / "things" / f"secret_{name}").read_text())
        return {key: base64.b64decode(value).decode() for key, value in kept["data"].items()}

    def there(self) -> set[str]:
        return {each.name for each in (self.memory / "things").iterdir()}


def empty_cloud(folder: Path) -> Cloud:
    """One in which nothing exists yet but the script."""
    (folder / "bin").mkdir()
    for name in PLAYED:
        (folder / "bin" / name).symlink_to(FAKE)
    for name in ("things", "policies"):
        (folder / "memory" / name).mkdir(parents=True)
    made = Cloud(folder)
    made.write()
    return made


def ran(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
