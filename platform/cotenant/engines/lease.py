"""The right to the GPU's memory, as an engine meets it: something to enter around the part of a call that needs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext

#: Makes one lease for one call. May raise a CallError on entry; then the call has no reply.
Lease = Callable[[], AbstractAsyncContextManager[None]]

#: For an engine that nobody shares with.
FREE: Lease = nullcontext
