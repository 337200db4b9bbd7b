"""Where result lines go: whole into a new file, or one by one to the end of one that is kept.

A followed file can be left and taken up again: the lines that it has are its memory of what was written. Always true:
no line is in it twice, and only its last line can be cut short, which is taken off before anything is added.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cotenant.errors import EnvironmentFault


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when the block ends without an error. Raises EnvironmentFault."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            yield file
        draft.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


class Followed:
    """A file that results are added to as they come. Use as a context manager; one process at a time."""

    def __init__(self, path: Path, job_ids: Container[str], batch: str) -> None:
        """
        Args:
            job_ids: the `id` of every line that may be in the file.
        """
        self._path = path
        self._job_ids = job_ids
        self._batch = batch
        self._file: BinaryIO | None = None
        self.written: set[str] = set()
        """The job ids that the file has."""

    def __enter__(self) -> Followed:
        try:
            self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._take_up(self._file)
        except BlockingIOError:
            self._close()
            raise EnvironmentFault(f"{self._path} is being written by another `cotenant results --follow`") from None
        except OSError as error:
            self._close()
            raise _unwritable(self._path, error) from error
        except EnvironmentFault:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add(self, job_id: str, line: bytes) -> None:
        """Append a job's line. Raises EnvironmentFault."""
        assert self._file is not None
        rest = memoryview(line + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _unwritable(self._path, error) from error
        self.written.add(job_id)

    def _take_up(self, file: BinaryIO) -> None:
        """Learn what is there, and cut off a last line that lacks its end."""
        whole = 0
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                self.written.add(self._job_id(line, number))
                whole += len(line)
        file.truncate(whole)
        file.seek(whole)

    def _job_id(self, line: bytes, number: int) -> str:
        try:
            job_id = json.loads(line)["id"]
        except (ValueError, KeyError, TypeError):
            job_id = None
        if not isinstance(job_id, str) or job_id not in self._job_ids:
            raise EnvironmentFault(
                f"{self._path}:{number}: is no result of batch {self._batch}, so nothing is added; name another file"
            )
        return job_id

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _unwritable(path: Path, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(f"{path} can't be written: {error.strerror}; name another file with -o")
