"""Composition roots: each module binds one part of the platform to Serve, and nothing imports them.

Serve converts a builder's arguments by looking at the parameter's annotation, which has to be the class itself:
the modules with a `build` do without `from __future__ import annotations`.
"""

from deployments import loopback

loopback.keep()
