"""Result objects: created once, found again, safe whatever things are called. Memory and files alike."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from cotenant.calls import Reply
from cotenant.errors import EnvironmentFault, IdentityConflict, JobError, MalformedJob, StoreUnavailable
from cotenant.jobs.model import BodyRef, Identity, Job, Result, digest, result_line
from cotenant.jobs.store.results import ResultStore, absolute_store, open_store, result_key

pytestmark = pytest.mark.unit


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ResultStore:
    return open_store("memory://" if request.param == "memory" else str(tmp_path / "results"))


def job(custom_id: str = "r-1", body: bytes = b'{"a":1}', batch: str = "b1", tenant: str = "acme") -> Job:
    return Job(Identity(tenant, batch, custom_id), "/v1/chat/completions", body)


def result(of: Job, answer: bytes = b'{"x":1}') -> Result:
    return Result(of.identity, of.sha256, result_line(of, Reply(200, answer)))


async def test_a_result_is_found_again(store: ResultStore) -> None:
    assert await store.result_of(job()) is None
    created = await store.create_result(result(job()))
    assert await store.result_of(job()) == created == result(job())


async def test_of_a_hundred_racing_writers_one_wins_and_all_go_on_with_its_result(store: ResultStore) -> None:
    results = [result(job(), json.dumps({"n": n}).encode()) for n in range(100)]
    visible = await asyncio.gather(*(store.create_result(one) for one in results))
    assert len({one.line for one in visible}) == 1
    assert await store.result(job().identity) == visible[0]


async def test_another_body_under_the_same_identity_is_a_conflict(store: ResultStore) -> None:
    await store.create_result(result(job()))
    other = job(body=b'{"a":2}')
    with pytest.raises(IdentityConflict, match="give this job another custom_id"):
        await store.result_of(other)
    with pytest.raises(IdentityConflict):
        await store.create_result(result(other))
    assert (await store.result(job().identity)) == result(job())


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b", "a b", "ä", ".", "%2e%2e", "x" * 500, "manifest.json", "\\"]
)
async def test_no_name_leaves_its_place_in_the_store(tmp_path: Path, name: str) -> None:
    store = open_store(str(tmp_path / "results"))
    for each in (job(custom_id=name), job(batch=name), job(tenant=name)):
        await store.create_result(result(each))
        assert await store.result_of(each) == result(each)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "_store"]
    assert len(files) == 3
    assert all(len(path.relative_to(tmp_path / "results").parts) == 4 for path in files)


def test_names_that_look_alike_do_not_meet() -> None:
    names = ["a/b", "a-b", "a b", "A-b", "a--b"]
    assert len({result_key(Identity("t", "b", name)).lower() for name in names}) == len(names)


async def test_a_large_reply_is_an_object_that_its_url_names(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    reply = Reply(200, b"picture" * 1000, "image/webp")
    stored = await store.put_output(job().identity, reply)
    assert stored.bytes == len(reply.body)
    assert stored.url.endswith(".webp")
    assert Path(stored.url.removeprefix("file://")).read_bytes() == reply.body
    other = await store.put_output(job().identity, Reply(200, b"another run's picture", "image/webp"))
    assert other.url != stored.url
    assert Path(stored.url.removeprefix("file://")).read_bytes() == reply.body


async def test_a_body_by_reference_is_fetched_and_checked(store: ResultStore) -> None:
    body = b'{"artwork":"' + b"x" * 5000 + b'"}'
    ref = await store.put_body("acme", body)
    assert ref == BodyRef(digest(body), len(body))
    by_reference = Job(job().identity, job().url, None, ref)
    assert await store.body(by_reference) == body
    assert await store.body(job()) == b'{"a":1}'


async def test_no_tenant_reaches_another_tenants_body(store: ResultStore) -> None:
    ref = await store.put_body("acme", b'{"secret":1}')
    with pytest.raises(MalformedJob, match="is not in the store"):
        await store.body(Job(Identity("mallory", "b1", "r-1"), job().url, None, ref))


async def test_a_settled_batch_lists_its_results_and_its_dead(store: ResultStore) -> None:
    await store.create_result(result(job("one")))
    await store.create_result(result(job("elsewhere", batch="b2")))
    await store.bury(job("two").identity, b"{}")
    results, dead = await store.settled("acme", "b1")
    assert results == {result_key(job("one").identity)}
    assert len(dead) == 1
    assert await store.settled("acme", "none") == (set(), set())


async def test_the_first_manifest_counts(store: ResultStore) -> None:
    assert await store.create_manifest("acme", "b1", b"first") == b"first"
    assert await store.create_manifest("acme", "b1", b"second") == b"first"
    assert await store.manifest("acme", "b1") == b"first"
    assert await store.manifest("acme", "b2") is None


async def test_an_object_that_is_no_result_is_said_by_name(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    path = tmp_path / result_key(job().identity)
    path.parent.mkdir(parents=True)
    path.write_text("[]")
    with pytest.raises(JobError, match="is not a result object"):
        await store.result_of(job())


async def test_a_store_that_does_not_answer_says_so(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "results"))
    (tmp_path / "results").rename(tmp_path / "away")
    (tmp_path / "results").write_text("a file where the folder was")
    with pytest.raises(StoreUnavailable, match="did not answer"):
        await store.create_result(result(job()))


@pytest.mark.parametrize(
    ("url", "absolute"),
    [
        ("./results", "/base/results"),
        ("results", "/base/results"),
        ("/var/results", "/var/results"),
        ("file:///var/results", "/var/results"),
        ("gs://bucket/prefix", "gs://bucket/prefix"),
        ("memory://", "memory://"),
    ],
)
def test_a_relative_folder_becomes_absolute_and_nothing_else_changes(url: str, absolute: str) -> None:
    assert absolute_store(url, Path("/base")) == absolute


def test_a_store_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(EnvironmentFault, match="ftp://nowhere can't be opened"):
        open_store("ftp://nowhere")
