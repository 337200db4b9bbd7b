"""What Serve's controller asks how many replicas a workload is to have: an autoscaling policy that looks it up.

Serve sends this module to its controller by value and calls the policy ten times a second for each application, in the
loop that does everything else: so there is nothing here that waits, nothing that raises, and no state but the link.
"""

import logging
from typing import Any

from ray.serve.config import AutoscalingContext

_LOG = logging.getLogger("cotenant.scaling")


class Policy:
    """The policy of one workload. What there is to know of it the doors tell the scaler."""

    def __init__(self, name: str) -> None:
        from deployments.scaler_link import link  # noqa: PLC0415 - of the controller's own, not sent with this module

        self._name = name
        self._failed = False
        self._link = link()

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas now; the present one where none is known."""
        try:
            there = context.target_num_replicas
            wanted = self._link.exchange(self._name, context.current_num_replicas, there)
            if wanted is None:
                wanted = there
            if wanted < 1 and context.total_num_requests > 0:
                wanted = 1
            return wanted, {}
        except Exception:
            # A policy that raises holds up every application's updates; what is there stays. Told once: this is asked
            # ten times a second.
            if not self._failed:
                self._failed = True
                _LOG.exception("the policy of %s failed; its replicas stay as they are", self._name)
            return context.target_num_replicas, {}
