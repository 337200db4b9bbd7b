"""Which message leases have to be extended, and when. Pure: the clock is an argument.

Half of the lease is left when it is extended, so one failed extension still has a second chance. The lease is
counted from before the request that obtained it, so it is never thought longer than it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Leases:
    """The message leases held, by ack id."""

    lease_s: float
    _since: dict[str, float] = field(default_factory=dict)

    def hold(self, ack_ids: Iterable[str], now: float) -> None:
        """They were obtained or extended by a request sent at `now`."""
        for ack_id in ack_ids:
            self._since[ack_id] = now

    def release(self, ack_id: str) -> None:
        self._since.pop(ack_id, None)

    def due(self, now: float) -> list[str]:
        """Those with at most half of their time left."""
        return [ack_id for ack_id, since in self._since.items() if now - since >= self.lease_s / 2]

    def __contains__(self, ack_id: object) -> bool:
        return ack_id in self._since

    def __len__(self) -> int:
        return len(self._since)
