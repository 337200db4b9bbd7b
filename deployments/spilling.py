"""The way to another server as a door has it: with the keys of this process's environment."""

from __future__ import annotations

import os

from cotenant.upstream.auth import auth_of
from cotenant.upstream.backend import UpstreamBackend
from cotenant.upstream.outlet import Terms


def connect(terms: Terms) -> UpstreamBackend:
    """For one workload that spills. Raises EnvironmentFault: its key is not set here."""
    auth = auth_of(os.environ, url=terms.url, key_env=terms.key_env, google=terms.google)
    return UpstreamBackend(terms.url, {terms.workload: terms.model}, auth=auth, spilled_from=terms.spilled_from)
