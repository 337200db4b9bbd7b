"""A replica's line to its node's agent, on a thread of its own, so that it answers while the replica is busy.

The line is made again whenever it breaks, and what holds is said again: a holder keeps what it holds while there is
no agent, and who asked goes on waiting. Always true: a grant that nobody waits for any more is given back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from cotenant.agent.protocol import (
    MAX_ANSWER_BYTES,
    Ask,
    Busy,
    Bye,
    Error,
    Granted,
    Hello,
    Identity,
    Idle,
    ProtocolError,
    Recalled,
    Report,
    Request,
    Slept,
    Started,
    Welcome,
    Withdraw,
    decode_answer,
    encode,
)
from cotenant.errors import EnvironmentFault
from cotenant.gpu.terms import Priority, Terms, Tier
from cotenant.telemetry.starts import Kept, Start

_LOG = logging.getLogger("cotenant.agent")
#: Longest pause between two attempts to reach an agent; `server.SETTLE_S` is several of these.
RETRY_S = 0.5
_FIRST_RETRY_S = 0.05
#: After a refusal: what was wrong (a budget, a GPU) may have changed by then.
_REFUSED_RETRY_S = 5.0
#: A refusal that may pass by itself (a replica that is being replaced holds its place to its end) fails no wish before.
_PASSING_S, _PASSING_RETRY_S = 120.0, 1.0
_CLOSED = "the line to the GPU agent was closed"


@dataclass(frozen=True)
class Figures:
    """How a replica is, asked for once a second on the link's thread."""

    tier: Tier
    allocated_bytes: int | None = None
    """What its allocators hold of the GPU; None if they don't tell."""
    running: int = 0
    waiting: int = 0
    pids: tuple[int, ...] = ()
    """Processes of its own outside its process tree."""
    gpu: str | None = None
    """UUID or index of its GPU, if it was not known at first."""


@dataclass
class _Wish:
    priority: Priority
    granted: Future[None]
    grant: int = 0
    """Number of the grant that fulfilled it."""


class AgentLink:
    """The line. Every method may be called from any thread, and returns at once unless it says otherwise.

    Args:
        path: the agent's socket, as `paths.socket_path` says.
        identity: which replica this is.
        terms: its share.
        gpu: UUID or index of its GPU; None if it does not know.
        pids: processes of its own outside its process tree.
        wake_s: seconds it takes to wake.
        figures: asked once a second on the link's thread: must be quick, and may be called from any thread.
        on_recall: told for whom the lease is wanted back; called in `loop` if there is one, else on the link's thread.
        loop: see `on_recall`.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity,
        terms: Terms,
        *,
        gpu: str | None = None,
        pids: tuple[int, ...] = (),
        wake_s: float = 5.0,
        figures: Callable[[], Figures] | None = None,
        on_recall: Callable[[str], None] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._path = path
        self._identity = identity
        self._terms = terms
        self._gpu = gpu
        self._wake_s = wake_s
        self._figures = figures
        self._on_recall = on_recall
        self._recall_loop = loop
        self._last = Figures(tier=Tier.COLD, pids=pids)
        self._told: Figures | None = None
        """What this agent was told."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="cotenant-agent-link", daemon=True)
        self._welcomed = threading.Event()
        # From here on: touched by the link's thread only.
        self._writer: asyncio.StreamWriter | None = None
        self._interval_s = 1.0
        self._wishes: list[_Wish] = []
        self._holds = False
        self._recalled = False
        self._claims = 0
        self._grants = 0
        self._work: Priority | None = None
        self._spoke = True
        """Whether it was said, since the grant, if there is work."""
        self._refusal: str | None = None
        self._refused_since: float | None = None
        self._starts = Kept(of_each=2)
        self._main: asyncio.Task[None] | None = None

    @property
    def gpu(self) -> str | None:
        """UUID of this replica's GPU as the agent knows it; None until it has said."""
        return self._gpu if self._welcomed.is_set() else None

    @property
    def connected(self) -> bool:
        """Whether the agent has welcomed this replica and is still there."""
        return self._welcomed.is_set()

    @property
    def holds(self) -> bool:
        """Whether the whole budget may be held now."""
        return self._holds

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def close(self) -> None:
        """Say bye and end the line; waits for that for at most a second. Call it when nothing is held any more."""
        if self._thread.is_alive():
            self._post(self._say_bye)
            self._thread.join(1.0)

    def wait_connected(self, timeout_s: float) -> bool:
        """Block until the agent has welcomed this replica; False if it did not in that time."""
        return self._welcomed.wait(timeout_s)

    def request(self, priority: Priority) -> Future[None]:
        """The wish to hold the whole budget: done when granted, withdrawn when cancelled.

        Fails with EnvironmentFault if the agent refuses this replica.
        """
        return self._wish(priority).granted

    async def ask(self, priority: Priority) -> None:
        """Return when granted, at once if it already is and is not recalled. Cancelling withdraws.

        Raises:
            EnvironmentFault: the agent refuses this replica.
        """
        wish = self._wish(priority)
        try:
            await asyncio.wrap_future(wish.granted)
        except asyncio.CancelledError:
            if not wish.granted.cancel() and wish.granted.exception() is None:
                # Granted in the very moment in which the caller went away.
                self._post(self._unclaim, wish.grant)
            raise

    def busy(self, priority: Priority) -> None:
        """There is work in hand, the most urgent of this priority."""
        self._post(self._set_work, priority)

    def idle(self) -> None:
        """There is no work in hand."""
        self._post(self._set_work, None)

    def slept(self) -> None:
        """The memory was given back; the floor is all that is held. No matter to who is always resident."""
        self._post(self._give_back)

    def started(self, start: Start) -> None:
        """Tell of a start of this replica; it is told again to an agent that comes anew."""
        self._post(self._tell_start, start)

    def report(self) -> None:
        """Ask for the figures, and tell the agent, now instead of within a second."""
        self._post(self._tell_figures)

    def _wish(self, priority: Priority) -> _Wish:
        wish = _Wish(priority, Future())
        wish.granted.add_done_callback(self._wish_ended)
        if not self._post(self._ask, wish):
            wish.granted.set_exception(EnvironmentFault(_CLOSED))
        return wish

    def _post(self, do: Callable[..., None], *arguments: object) -> bool:
        """Have the link's thread do it; False if the line was closed."""
        try:
            self._loop.call_soon_threadsafe(do, *arguments)
        except RuntimeError:
            return False
        return True

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._main = self._loop.create_task(self._keep_line())
        try:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._main)
        finally:
            self._refusal = _CLOSED
            self._loop.run_until_complete(self._end())
            self._loop.close()

    async def _end(self) -> None:
        """Let what was posted run, and transports close."""
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await asyncio.sleep(0)
        self._fail_wishes(_CLOSED)

    async def _keep_line(self) -> None:
        pause_s = _FIRST_RETRY_S
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(self._path, limit=MAX_ANSWER_BYTES)
                self._told = None
                self._say(self._hello())
                figures = asyncio.create_task(self._tell_figures_on())
                try:
                    while True:
                        self._hear(await reader.readuntil(b"\n"))
                        if self._refused_since is None:
                            pause_s = _FIRST_RETRY_S
                finally:
                    figures.cancel()
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                pass
            finally:
                self._welcomed.clear()
                if self._writer is not None:
                    self._writer.close()
                    self._writer = None
            if self._refusal is None and self._refused_since is not None:
                pause_s = _PASSING_RETRY_S
            await asyncio.sleep(_REFUSED_RETRY_S if self._refusal else pause_s)
            pause_s = min(RETRY_S, 2 * pause_s)

    def _hello(self) -> Hello:
        return Hello(
            terms=self._terms,
            identity=self._identity,
            gpu=self._gpu,
            tier=self._last.tier,
            holds_full=self._holds,
            pids=self._last.pids,
            wake_s=self._wake_s,
        )

    def _hear(self, frame: bytes) -> None:
        try:
            answer = decode_answer(frame)
        except ProtocolError as error:
            _LOG.warning("the GPU agent said what can't be understood: %s", error)
            return
        match answer:
            case Welcome():
                self._welcome(answer)
            case Granted():
                self._granted()
            case Recalled(wanted_by=wanted_by):
                self._recall(wanted_by)
            case Error():
                self._refused(answer)

    def _welcome(self, answer: Welcome) -> None:
        first = not self._welcomed.is_set()
        self._gpu = answer.gpu or self._gpu
        self._interval_s = answer.interval_s
        self._refusal, self._refused_since = None, None
        self._welcomed.set()
        if first:
            self._tell_figures()
            for start in self._starts.all():
                self._say(Started(start=start))
            if self._work is not None:
                self._say(Busy(priority=self._work))
            self._say_wish()

    def _refused(self, error: Error) -> None:
        _LOG.error("the GPU agent refuses %s's %s: %s", self._terms.workload, error.about or "line", error.message)
        if error.final and self._may_pass(error):
            if self._writer is not None:
                self._writer.close()
            return
        if error.final:
            self._refusal = error.message
            if self._writer is not None:
                self._writer.close()
        if error.final or error.about == "ask":
            self._fail_wishes(error.message)

    def _may_pass(self, error: Error) -> bool:
        now = self._loop.time()
        if self._refused_since is None:
            self._refused_since = now
        return error.passing and now - self._refused_since < _PASSING_S

    def _ask(self, wish: _Wish) -> None:
        if wish.granted.done():
            return
        if self._refusal is not None:
            wish.granted.set_exception(EnvironmentFault(self._refusal))
        elif self._holds and not self._recalled:
            self._grant_to([wish])
        else:
            urgency = self._urgency
            self._wishes.append(wish)
            if urgency is None or wish.priority > urgency:
                self._say_wish()

    @property
    def _urgency(self) -> Priority | None:
        return max((wish.priority for wish in self._wishes), default=None)

    def _say_wish(self) -> None:
        urgency = self._urgency
        if urgency is not None:
            self._say(Ask(priority=urgency))

    def _wish_ended(self, granted: Future[None]) -> None:
        if granted.cancelled():
            self._post(self._drop_wish, granted)

    def _drop_wish(self, granted: Future[None]) -> None:
        wished = bool(self._wishes)
        self._wishes = [wish for wish in self._wishes if wish.granted is not granted]
        if wished and not self._wishes:
            self._say(Withdraw())

    def _granted(self) -> None:
        self._grants += 1
        self._holds, self._recalled, self._claims, self._spoke = True, False, 0, False
        wishes, self._wishes = self._wishes, []
        self._grant_to(wishes)
        if not self._claims:
            self._give_back()

    def _grant_to(self, wishes: list[_Wish]) -> None:
        for wish in wishes:
            if wish.granted.set_running_or_notify_cancel():
                self._claims += 1
                wish.grant = self._grants
                wish.granted.set_result(None)

    def _unclaim(self, grant: int) -> None:
        if grant == self._grants and self._holds:
            self._claims -= 1
            if not self._claims:
                self._give_back()

    def _give_back(self) -> None:
        if self._terms.residency == "always":
            return
        self._holds = self._recalled = False
        self._work, self._spoke = None, True
        self._tell_figures()
        self._say(Slept())
        # Who asked while the lease was recalled has its place already; an agent that missed that hears it now.
        self._say_wish()

    def _recall(self, wanted_by: str) -> None:
        if not self._holds:
            return
        self._recalled = True
        if self._on_recall is None:
            return
        if self._recall_loop is None:
            try:
                self._on_recall(wanted_by)
            except Exception:
                _LOG.exception("%s could not be told to sleep", self._terms.workload)
        else:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                self._recall_loop.call_soon_threadsafe(self._on_recall, wanted_by)

    def _set_work(self, priority: Priority | None) -> None:
        if priority is not self._work or not self._spoke:
            self._work, self._spoke = priority, True
            self._say(Idle() if priority is None else Busy(priority=priority))

    def _tell_start(self, start: Start) -> None:
        self._starts.add(start)
        if self._welcomed.is_set():
            self._say(Started(start=start))

    async def _tell_figures_on(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            self._tell_figures()

    def _tell_figures(self) -> None:
        """Report what has changed since it was last said."""
        if self._figures is None:
            return
        try:
            figures = self._figures()
        except Exception:
            _LOG.exception("the figures of %s could not be had", self._terms.workload)
            return
        self._last = figures
        if figures != self._told and self._welcomed.is_set():
            self._told = figures
            self._say(
                Report(
                    tier=figures.tier,
                    allocated_bytes=figures.allocated_bytes,
                    running=figures.running,
                    waiting=figures.waiting,
                    pids=figures.pids,
                    gpu=figures.gpu,
                )
            )

    def _say(self, message: Request) -> None:
        """Send, if there is a line; what holds is said again when there is one."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(message))

    def _say_bye(self) -> None:
        self._say(Bye())
        if self._main is not None:
            self._main.cancel()

    def _fail_wishes(self, reason: str) -> None:
        wishes, self._wishes = self._wishes, []
        for wish in wishes:
            if wish.granted.set_running_or_notify_cancel():
                wish.granted.set_exception(EnvironmentFault(reason))
