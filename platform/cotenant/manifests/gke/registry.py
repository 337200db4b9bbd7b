"""What the registry may forget: one policy, which `setup.sh` gives to the repository of images.

A repository's newest versions of each image stay whatever their age, so what an environment runs stays as long as not
more than so many came after it.
"""

from __future__ import annotations

from typing import Any

#: Newest versions of each image that stay, and days after which others go: without a tag, and with one.
KEPT_VERSIONS, UNTAGGED_DAYS, TAGGED_DAYS = 10, 14, 180
#: Tag of what builders keep for the next build (`scripts/build_images`, `images/cloudbuild.yaml`).
BUILD_CACHE = "buildcache"


def cleanup_policy() -> list[dict[str, Any]]:
    """As `gcloud artifacts repositories set-cleanup-policies` takes it. What is to be kept goes before what is not."""
    return [
        {"name": "keep-newest", "action": {"type": "Keep"}, "mostRecentVersions": {"keepCount": KEPT_VERSIONS}},
        {
            "name": "keep-build-cache",
            "action": {"type": "Keep"},
            "condition": {"tagState": "tagged", "tagPrefixes": [BUILD_CACHE]},
        },
        _delete("untagged", UNTAGGED_DAYS),
        _delete("tagged", TAGGED_DAYS),
    ]


def _delete(state: str, days: int) -> dict[str, Any]:
    return {
        "name": f"delete-{state}",
        "action": {"type": "Delete"},
        "condition": {"tagState": state, "olderThan": f"{days}d"},
    }
