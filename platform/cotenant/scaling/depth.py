"""How much waits where a door sees only what it has pulled.

A subscription tells nobody how deep it is: a pull brings as many as were asked for, or it waits because there are no
more. While pulls come back full and what they bring gets older, the door is not keeping up, and what it can't see is
taken for as much as it sees, then twice that, and so on; as soon as one pull has to wait, what it sees is all there is.
While no pull is made, since nobody could do what it would bring, no more is known, and the guess stays small.
"""

from __future__ import annotations

from dataclasses import dataclass

#: The guess is doubled after so long in which pulls came back full.
_STEP_S = 1.0
#: More than so many times what is seen is never guessed: by then the most replicas are long asked for.
_MOST = 1024.0
#: Without another full pull it goes no further than this.
_UNSEEN = 4.0


@dataclass
class Depth:
    """The guess for one workload at one door."""

    times: float = 1.0
    """How many times what is seen waits."""
    _since_s: float = 0.0
    _oldest_s: float = 0.0
    _pulls: int = 0

    def saw(self, waiting: int, oldest_s: float, full_pulls: int | None, now: float) -> float:
        """How many times what the door sees there is.

        Args:
            waiting: calls that it sees waiting.
            oldest_s: how long the oldest of them has waited.
            full_pulls: how many pulls have come back full; None if the last one did not, or waits.
        """
        if full_pulls is None or not waiting:
            self.times, self._since_s, self._oldest_s, self._pulls = 1.0, now, oldest_s, full_pulls or 0
        elif now - self._since_s >= _STEP_S:
            if oldest_s > self._oldest_s:
                if full_pulls != self._pulls or self.times < _UNSEEN:
                    self.times = min(_MOST, 2 * self.times)
            elif oldest_s < self._oldest_s - _STEP_S:  # it catches up
                self.times = max(1.0, self.times / 2)
            self._since_s, self._oldest_s, self._pulls = now, oldest_s, full_pulls
        return self.times
