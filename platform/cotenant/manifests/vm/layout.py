"""Where things lie in the platform's container, and which files of the machine it is given.

The container works in `HOME`, which its image gives to the user it runs as: Docker makes every other folder root's,
where it could write nothing. What the platform file names by a relative path is read from beside `compose.yaml`, and
results by a relative path are kept in the volume of `HOME`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from cotenant.config import Platform
from cotenant.manifests.site import HOME

PLATFORM_FILE = "/etc/cotenant/platform.yaml"


@dataclass(frozen=True)
class Given:
    """A file or folder of the machine, relative to `compose.yaml` or absolute, and where the container has it."""

    source: str
    target: str


def in_container(path: str) -> str:
    """A local path of the platform file as the container resolves it."""
    if path == "~" or path.startswith("~/"):
        path = HOME + path[1:]
    return posixpath.normpath(posixpath.join(HOME, path))


def results_elsewhere(platform: Platform) -> str | None:
    """The job store's folder if it is one of the machine's; None where it is a bucket, in memory, or below `HOME`."""
    store = platform.jobs.store
    folder = in_container(store)
    return None if "://" in store or folder.startswith(f"{HOME}/") else folder


def given(platform: Platform) -> tuple[Given, ...]:
    """Templates, local models and key file that the container reads, each once."""
    found = {in_container(path): path for path in _local_paths(platform)}
    return tuple(Given(source, target) for target, source in sorted(found.items()))


def _local_paths(platform: Platform) -> Iterator[str]:
    for workload in platform.workloads.values():
        if workload.mockup is not None:
            yield from (each for each in workload.mockup.templates if each.endswith(".glb") and "://" not in each)
        else:
            yield from (each for each in workload.models if each.startswith((".", "~", "/")))
    if platform.gateway.keys_file is not None:
        yield platform.gateway.keys_file
