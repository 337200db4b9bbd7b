"""Pub/Sub on the real emulator: the promises of a job source, set-up of topics and subscriptions, and a restart.

The promises run side by side, each on topics of its own, since most of their time is waiting for leases to run out.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cotenant.config import Jobs
from cotenant.errors import SourceUnavailable
from cotenant.jobs.queue import emulator, pubsub_client
from cotenant.jobs.queue.lanes import MAIN, lane_of, topic_of
from cotenant.jobs.queue.pubsub import PubSubLanes, PubSubSource
from cotenant.jobs.queue.pubsub_admin import PubSubAdmin
from cotenant.jobs.queue.setup import Part, agent_rights, apply, check, found, own_rights
from cotenant.jobs.queue.source import Delivery, JobSource, Message
from cotenant.jobs.queue.topology import EMULATOR, LABELS, Step, labels_of, wanted, within
from tests.contracts.job_source import JobSourceContract, contract_jobs

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

_numbers = itertools.count(1)
PROMISES = sorted(name for name in dir(JobSourceContract) if name.startswith("test_"))


@pytest.fixture(scope="module")
def emulator_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    found = emulator.find_emulator()
    if isinstance(found, str):
        pytest.skip(found)
    running = found.start(tmp_path_factory.mktemp("emulator"))
    yield running.host_port
    emulator.stop(running.pid)


class OnTheEmulator(JobSourceContract):
    keeps_order_after_nacks = False

    def __init__(self, host: str) -> None:
        self.host = host
        self.jobs = contract_jobs(f"-{next(_numbers)}")
        self.lanes = self.open_lanes(self.jobs)

    def open_lanes(self, jobs: Jobs) -> PubSubLanes:
        return PubSubLanes(jobs, self.host, pull_wait_s=1.0)

    async def keep(self, promise: str) -> None:
        source = self.lanes.open(MAIN)
        await source.setup()
        try:
            await getattr(self, promise)(source)
        finally:
            await source.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def promises(emulator_host: str, request: pytest.FixtureRequest) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    chosen = {item.callspec.params.get("promise") for item in request.session.items if hasattr(item, "callspec")}
    running = {
        promise: asyncio.create_task(OnTheEmulator(emulator_host).keep(promise))
        for promise in PROMISES
        if promise in chosen
    }
    yield running
    for task in running.values():
        task.cancel()
    await asyncio.gather(*running.values(), return_exceptions=True)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("promise", PROMISES)
async def test_the_emulator_keeps_the_promise(promises: dict[str, asyncio.Task[None]], promise: str) -> None:
    await promises[promise]


@pytest.fixture
async def lanes(emulator_host: str) -> PubSubLanes:
    return PubSubLanes(contract_jobs(f"-{next(_numbers)}"), emulator_host, pull_wait_s=1.0)


async def test_a_queue_that_is_not_there_is_said_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub_client, "CALL_TIMEOUT_S", 2.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        source = PubSubSource(Jobs(), emulator_host=host, pull_wait_s=0.5)
        with pytest.raises(SourceUnavailable, match=f"the emulator at {host} did not publish to jobs"):
            await asyncio.wait_for(source.publish("jobs", [Message(b"x")]), 60)
        with pytest.raises(SourceUnavailable, match="did not pull"):
            await asyncio.wait_for(source.pull(1), 60)
        await source.close()


async def test_a_server_that_takes_connections_and_says_nothing_is_no_empty_queue() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        source = PubSubSource(Jobs(), emulator_host=f"127.0.0.1:{silent.getsockname()[1]}", pull_wait_s=0.5)
        with pytest.raises(SourceUnavailable, match="did not pull"):
            await asyncio.wait_for(source.pull(1), 60)
        await source.close()


async def test_a_subscription_that_is_missing_is_told_with_what_makes_it(lanes: PubSubLanes) -> None:
    source = lanes.open(MAIN)
    with pytest.raises(SourceUnavailable, match="`cotenant jobs setup` creates what is missing"):
        await source.pull(1)
    await source.close()


async def test_no_pull_is_so_short_that_its_answer_may_come_too_late(
    lanes: PubSubLanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a late answer brings lies leased until its lease is over, though nobody has it."""
    source = lanes.open(lane_of("writer"))
    await source.setup()
    puller = source._connection.puller
    pull, timeouts = puller.pull, list[float]()

    async def noted(*arguments: Any, timeout: float, **options: Any) -> Any:
        timeouts.append(timeout)
        return await pull(*arguments, timeout=timeout, **options)

    monkeypatch.setattr(puller, "pull", noted)
    began = time.monotonic()
    for _ in range(3):
        assert list(await source.pull(1)) == []
    assert time.monotonic() - began < 30
    assert timeouts and min(timeouts) >= 2.0
    await source.close()


async def test_a_lane_can_be_used_again_after_it_was_closed(lanes: PubSubLanes) -> None:
    source = lanes.open(lane_of("writer"))
    await source.setup()
    await source.close()
    await source.close()
    assert list(await source.pull(1)) == []
    await source.close()


# --- set-up -------------------------------------------------------------------------------------------------


def settings(**more: object) -> Jobs:
    return contract_jobs(f"-{next(_numbers)}", **more)


async def test_setting_up_creates_everything_with_its_settings_and_then_there_is_nothing_left_to_do(
    emulator_host: str,
) -> None:
    jobs = settings(filter='attributes.kind = "job"', ordering=True, exactly_once=True, retention_d=6)
    topology = wanted(jobs, ["writer", "painter"], labels_of("shop", "prod"))
    admin = PubSubAdmin(jobs.project, emulator_host)
    steps = await check(admin, topology)
    assert {step.step for step in steps} == {Step.CREATE}
    assert [one.done for one in await apply(admin, steps, dry_run=True)] == [False] * len(steps)
    assert await check(admin, topology) == steps
    assert all(one.done for one in await apply(admin, steps))
    assert await check(admin, topology) == ()
    assert await found(admin, topology) == within(topology, EMULATOR)
    there = await admin.subscription(jobs.subscription)
    assert there is not None
    assert (there.filter, there.ordering, there.exactly_once) == ('attributes.kind = "job"', True, True)
    assert (there.retention_s, there.expires_after_s) == (6 * 86_400, None)
    assert (there.dead_letter, there.max_deliveries) == (jobs.dead_letter, 10)
    assert there.labels == {"app": "cotenant", "platform": "shop", "environment": "prod"}
    clerk = await admin.subscription(f"{jobs.subscription}-clerk")
    assert clerk is not None and (clerk.dead_letter, clerk.max_deliveries, clerk.filter) == (None, 0, "")
    await admin.close()


async def test_a_source_sets_up_what_the_topology_says_of_its_lane(emulator_host: str) -> None:
    jobs = settings()
    source = PubSubLanes(jobs, emulator_host).open(lane_of("writer"))
    await source.setup()
    admin = PubSubAdmin(jobs.project, emulator_host)
    there = await admin.subscription(f"{jobs.subscription}.writer")
    assert there is not None
    assert (there.topic, there.lease_s, there.labels) == (topic_of(jobs, lane_of("writer")), jobs.lease_s, LABELS)
    assert {step.resource.name for step in await check(admin, wanted(jobs, ["writer"]))} == {
        jobs.topic,
        jobs.subscription,
        f"{jobs.topic}-clerk",
        f"{jobs.subscription}-clerk",
    }
    await source.close()
    await admin.close()


async def test_settings_that_changed_are_updated_in_place_and_what_cannot_be_is_only_told(emulator_host: str) -> None:
    before = settings()
    admin = PubSubAdmin(before.project, emulator_host)
    await apply(admin, await check(admin, wanted(before, [])))
    after = before.model_copy(
        update={"lease_s": 40, "max_attempts": 3, "exactly_once": True, "retention_d": 2, "ordering": True}
    )
    steps = await check(admin, wanted(after, []))
    main = [step for step in steps if step.resource.name == before.subscription]
    assert [step.step for step in main] == [Step.UPDATE, Step.RECREATE]
    assert [change.setting for change in main[1].changes] == ["ordering"]
    applied = await apply(admin, steps)
    assert all(one.done == (one.difference.step is Step.UPDATE) for one in applied)
    there = await admin.subscription(before.subscription)
    assert there is not None
    assert (there.lease_s, there.max_deliveries, there.exactly_once, there.retention_s) == (40, 30, True, 2 * 86_400)
    assert not there.ordering
    assert {step.step for step in await check(admin, wanted(after, []))} == {Step.RECREATE}
    await admin.close()


async def test_one_step_that_fails_does_not_keep_the_next_from_being_taken(emulator_host: str) -> None:
    jobs = settings()
    admin = PubSubAdmin(jobs.project, emulator_host)
    await apply(admin, await check(admin, wanted(jobs, [])))
    relabelled = wanted(jobs.model_copy(update={"lease_s": 30}), ["writer"], labels_of("shop", "prod"))
    applied = await apply(admin, await check(admin, relabelled))
    # The emulator can't change labels, so every update that has them is refused; what is missing is created.
    assert {one.difference.step for one in applied if one.done} == {Step.CREATE}
    assert all("labels" in one.trouble for one in applied if not one.done)
    await admin.close()


async def test_rights_that_the_emulator_knows_nothing_of_are_unknown(emulator_host: str) -> None:
    jobs = settings()
    topology = wanted(jobs, ["writer"])
    admin = PubSubAdmin(jobs.project, emulator_host)
    assert {right.given for right in await agent_rights(admin, topology)} == {None}
    assert {right.given for right in await own_rights(admin, Part.INGRESS, jobs, ["writer"])} == {None}
    await admin.close()


# --- a restart ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def emulator_at(port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = emulator.find_emulator()
    assert not isinstance(command, str)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [command.java, "-Xmx256m", "-jar", command.jar, "--host=127.0.0.1", f"--port={port}"],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_a_source_goes_on_after_the_emulator_was_killed_and_started_again(
    emulator_host: str, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    jobs = settings()
    lanes = PubSubLanes(jobs, f"127.0.0.1:{port}", pull_wait_s=1.0)
    main, writer = lanes.open(MAIN), lanes.open(lane_of("writer"))

    async def set_up(within_s: float) -> None:
        end = time.monotonic() + within_s
        while True:
            try:
                await asyncio.gather(main.setup(), writer.setup())
                return
            except SourceUnavailable:
                assert time.monotonic() < end
                await asyncio.sleep(0.5)

    async def pull(source: JobSource) -> Sequence[Delivery]:
        """As the pump does: a pull that fails is tried again."""
        end = time.monotonic() + 60
        while True:
            try:
                return await source.pull(1)
            except SourceUnavailable:
                assert time.monotonic() < end
                await asyncio.sleep(0.5)

    with emulator_at(port, tmp_path / "log") as first:
        await set_up(60)
        await pull(main)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    for _ in range(6):  # long enough for gRPC's pauses between tries to grow
        with pytest.raises(SourceUnavailable):
            await main.pull(1)
        await asyncio.sleep(1)
    with emulator_at(port, tmp_path / "log"):
        await set_up(60)
        await main.publish(topic_of(jobs, lane_of("writer")), [Message(b"after the restart")])
        got = [*await pull(writer)] or [*await pull(writer)]
        assert [delivery.data for delivery in got] == [b"after the restart"]
        await writer.ack([got[0].ack_id])
        await asyncio.gather(main.close(), writer.close())
