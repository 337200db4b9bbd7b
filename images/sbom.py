"""The bill of materials of an image, in CycloneDX: its Python packages by cyclonedx-py, its Debian packages by dpkg.

Runs inside the image as it is being built, with the tools' Python, so that it lists what is installed and not what
was asked for. Two builds of one lock write the same bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any
from urllib.parse import quote

_FIELDS = r"${binary:Package}\t${Version}\t${Architecture}\t${source:Package}\n"


def debian_components(listing: str, release: str) -> list[dict[str, Any]]:
    """CycloneDX components of `dpkg-query --show` in `_FIELDS`; `release` as in debian-12."""
    components = []
    for line in sorted(listing.splitlines()):
        package, version, architecture, source = line.split("\t")
        name = package.partition(":")[0]
        purl = f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={architecture}&distro={release}"
        components.append(
            {
                "type": "library",
                "bom-ref": purl,
                "name": name,
                "version": version,
                "purl": purl,
                "properties": [{"name": "dpkg:source", "value": source}],
            }
        )
    return components


def release(os_release: str) -> str:
    """`debian-12`, of /etc/os-release."""
    fields = dict(line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    return f"{fields['ID']}-{fields['VERSION_ID']}".replace('"', "")


def main() -> None:
    image = sys.argv[1]
    python = "/opt/venv/bin/python"
    cyclonedx = [
        "/opt/tools/bin/cyclonedx-py",
        "environment",
        "--output-reproducible",
        "--output-format",
        "JSON",
        python,
    ]
    document = json.loads(subprocess.run(cyclonedx, check=True, stdout=subprocess.PIPE).stdout)
    listing = subprocess.run(["dpkg-query", "--show", f"--showformat={_FIELDS}"], check=True, stdout=subprocess.PIPE)
    with open("/etc/os-release") as file:  # noqa: PTH123
        debian = debian_components(listing.stdout.decode(), release(file.read()))
    document["components"] = [*document.get("components", ()), *debian]
    document.setdefault("metadata", {})["component"] = {
        "type": "container",
        "bom-ref": image,
        "name": f"cotenant-{image}",
    }
    json.dump(document, sys.stdout, indent=1, sort_keys=True)


if __name__ == "__main__":
    main()
