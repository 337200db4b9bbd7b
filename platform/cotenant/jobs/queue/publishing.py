"""Publishing to lanes, from whichever process: a lane's subscription is there before the first message for it.

A topic without a subscription drops what is published, without a word. So nobody publishes to a lane that this class
has not set up since the queue last failed (an emulator that was restarted has forgotten its topics).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from cotenant.config import Jobs
from cotenant.errors import SourceUnavailable
from cotenant.jobs.queue.lanes import CLERK, MAIN, Lanes, topic_of
from cotenant.jobs.queue.source import JobSource, Message


class LanePublisher:
    """Publishes to topics by their short names, all of the messages or, after an error, an unknown part."""

    def __init__(self, jobs: Jobs, lanes: Lanes) -> None:
        self._jobs = jobs
        self._lanes = lanes
        self._sources: dict[str, JobSource] = {}
        self._ready: set[str] = set()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def publish(self, topic: str, messages: Sequence[Message]) -> Sequence[str]:
        """The message ids, in order. Raises SourceUnavailable, and MalformedJob for what no message can carry."""
        lane = self._lane(topic)
        source = self._sources.get(lane)
        if source is None:
            source = self._sources[lane] = self._lanes.open(lane)
        try:
            async with self._locks[lane]:
                if lane not in self._ready:
                    await source.setup()
                    self._ready.add(lane)
            return await source.publish(topic, messages)
        except SourceUnavailable:
            self._ready.discard(lane)
            raise

    async def close(self) -> None:
        for source in self._sources.values():
            await source.close()

    def _lane(self, topic: str) -> str:
        """The lane of a topic; the main one for a topic that is no lane's (results, dead letters)."""
        if topic == topic_of(self._jobs, CLERK):
            return CLERK
        prefix = f"{self._jobs.topic}."
        return topic[len(self._jobs.topic) :] if topic.startswith(prefix) else MAIN
