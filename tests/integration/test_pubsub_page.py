"""What docs/pubsub.md tells people to run does what it says: commands are those we would print, code publishes jobs."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cotenant.config import Jobs
from cotenant.jobs.model import parse_job
from cotenant.jobs.queue import emulator
from cotenant.jobs.queue.pubsub import PubSubSource
from cotenant.jobs.queue.setup import Part, agent_grants, part_grants
from cotenant.jobs.queue.topology import wanted

pytestmark = pytest.mark.integration
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True

PAGE = (Path(__file__).parents[2] / "docs" / "pubsub.md").read_text(encoding="utf-8")
JOBS = Jobs(store="gs://$BUCKET/results", ordering=True)


@pytest.fixture(scope="module")
def emulator_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    found = emulator.find_emulator()
    if isinstance(found, str):
        pytest.skip(found)
    running = found.start(tmp_path_factory.mktemp("emulator"))
    yield running.host_port
    emulator.stop(running.pid)


def test_the_commands_on_the_page_are_all_that_the_parts_need_and_nothing_more() -> None:
    (block,) = [block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) if "add-iam" in block]
    told = {line for line in block.splitlines() if line.startswith("gcloud")}
    grants = list(agent_grants(wanted(JOBS, ["writer"])))
    for part in Part:
        grants += part_grants(part, JOBS, ["writer"], "$MEMBER")
    assert told == {grant.command("$PROJECT") for grant in grants}


@pytest.mark.parametrize("number", [0, 1], ids=["plain", "ordered"])
async def test_the_code_on_the_page_publishes_jobs(emulator_host: str, number: int, tmp_path: Path) -> None:
    jobs = JOBS.model_copy(update={"lease_s": 60})
    source = PubSubSource(jobs, emulator_host=emulator_host, pull_wait_s=1.0)
    await source.setup()
    script = tmp_path / "publish.py"
    script.write_text(re.findall(r"```python\n(.*?)```", PAGE, re.S)[number])
    environment = {**os.environ, "PUBSUB_EMULATOR_HOST": emulator_host}
    publish = await asyncio.create_subprocess_exec(
        sys.executable, script, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, said = await asyncio.wait_for(publish.communicate(), 120)
    assert publish.returncode == 0, said.decode()
    got = []
    for _ in range(10):
        some = list(await source.pull(10))
        await source.ack([delivery.ack_id for delivery in some])
        got += some
        if len(got) == 3:
            break
    parsed = [parse_job(delivery.data, delivery.attributes, delivery.message_id) for delivery in got]
    assert {job.identity.tenant for job in parsed} == {"acme"}
    if number:
        assert [job.identity.custom_id for job in parsed] == ["page-0", "page-1", "page-2"]
        assert {delivery.ordering_key for delivery in got} == {"order-1042"}
    else:
        assert {job.identity.custom_id for job in parsed} == {"c0", "c1", "c2"}
        assert {job.wishes.priority for job in parsed} == {5}
    await source.close()
