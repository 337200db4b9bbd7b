"""What a trip carries, as its caller's router sees it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from cotenant.calls import Call


class Cargo:
    """The calls of a trip. They travel as a list; here it is known which of them are still `open`."""

    def __init__(self, calls: Sequence[Call], open: Set[int]) -> None:
        self.calls = list(calls)
        self.open = open

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self.calls,)
