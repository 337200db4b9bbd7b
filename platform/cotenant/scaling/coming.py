"""Replicas that were asked for and do not serve yet: in how long they will, and how long starts take here."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from cotenant.scaling.learning import StartTime
from cotenant.scaling.terms import Starts


@dataclass
class Coming:
    """One workload's starts, watched from outside: how many replicas run, how many were asked for."""

    wake: StartTime
    share: StartTime
    node: StartTime
    free_shares: int = 0
    """Replicas that fit on the nodes that are there, beside what runs and starts."""
    _asked: deque[tuple[float, bool, bool]] = field(default_factory=deque)
    """Of each that does not serve yet: when it was asked for, whether it needs a node, whether it was there before."""
    _running: int = 0

    @property
    def starts(self) -> Starts:
        return Starts(self.wake.seconds, self.share.seconds, self.node.seconds, self.free_shares)

    def saw(self, running: int, target: int, now: float) -> None:
        """So many replicas serve, so many are asked for."""
        for _ in range(max(0, running - self._running)):
            if self._asked:
                at_s, with_node, again = self._asked.popleft()
                if not again:
                    (self.node if with_node else self.share).took(now - at_s)
        # Those that were there may be back at once: Serve's controller has only to find them again.
        lost = max(0, self._running - running)
        self._running = running
        missing = max(0, target - running)
        while len(self._asked) > missing:
            self._asked.pop()
        while len(self._asked) < missing:
            with_node = self.free_shares <= 0
            self.free_shares = max(0, self.free_shares - 1)
            self._asked.append((now, with_node, lost > 0))
            lost -= 1

    def starting(self, now: float) -> tuple[float, ...]:
        """Seconds until each of those that start serves; one that is overdue may do so any moment."""
        kinds = ((at_s, self.node if with_node else self.share) for at_s, with_node, _ in self._asked)
        return tuple(max(0.0, kind.seconds - (now - at_s)) for at_s, kind in kinds)
