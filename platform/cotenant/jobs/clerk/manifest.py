"""What a batch consists of, line by line: ids and hashes, the workload of each, and where its line lies in the file.

Bodies stay in the file; what is held of 50,000 lines is a few megabytes.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from cotenant.jobs.model import canonical

#: Lines closer than this are read together, and at most so much at once.
_GAP_BYTES, _RUN_BYTES = 256 << 10, 8 << 20


@dataclass
class Manifest:
    """The lines of a batch in their order. `began_at` is when it was taken up, Unix time in whole seconds."""

    began_at: int
    custom_ids: list[str] = field(default_factory=list)
    sha256s: list[str] = field(default_factory=list)
    workloads: list[str] = field(default_factory=list)
    which: array[int] = field(default_factory=lambda: array("H"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("L"))

    def __len__(self) -> int:
        return len(self.custom_ids)

    def add(self, custom_id: str, sha256: str, workload: str, offset: int, length: int) -> None:
        """The next line. `workload` is empty where it is not known."""
        if workload not in self.workloads:
            self.workloads.append(workload)
        self.custom_ids.append(custom_id)
        self.sha256s.append(sha256)
        self.which.append(self.workloads.index(workload))
        self.offsets.append(offset)
        self.lengths.append(length)

    def same_jobs(self, other: Manifest) -> bool:
        return self.custom_ids == other.custom_ids and self.sha256s == other.sha256s

    def dump(self, tenant: str, batch: str) -> bytes:
        return canonical(
            {
                "batch": batch,
                "tenant": tenant,
                "created_at": self.began_at,
                "jobs": list(zip(self.custom_ids, self.sha256s, strict=True)),
                "workloads": self.workloads,
                "lines": list(zip(self.which, self.offsets, self.lengths, strict=True)),
            }
        )

    @classmethod
    def load(cls, data: bytes) -> Manifest | None:
        """The opposite of `dump`; None for one that does not say where its lines are."""
        raw = json.loads(data)
        if "lines" not in raw:
            return None
        return cls(
            began_at=int(raw["created_at"]),
            custom_ids=[custom_id for custom_id, _ in raw["jobs"]],
            sha256s=[sha256 for _, sha256 in raw["jobs"]],
            workloads=list(raw["workloads"]),
            which=array("H", (line[0] for line in raw["lines"])),
            offsets=array("Q", (line[1] for line in raw["lines"])),
            lengths=array("L", (line[2] for line in raw["lines"])),
        )

    def runs(self, indexes: list[int]) -> Iterator[list[int]]:
        """These lines, by their place in the file, in runs that are worth reading at once."""
        run: list[int] = []
        for index in sorted(indexes, key=self.offsets.__getitem__):
            if run and (
                self.offsets[index] - self._end(run[-1]) > _GAP_BYTES
                or self._end(index) - self.offsets[run[0]] > _RUN_BYTES
            ):
                yield run
                run = []
            run.append(index)
        if run:
            yield run

    def span(self, run: list[int]) -> tuple[int, int]:
        """Where a run begins in the file, and its length in bytes."""
        start = self.offsets[run[0]]
        return start, self._end(run[-1]) - start

    def _end(self, index: int) -> int:
        return self.offsets[index] + self.lengths[index]
