"""Pictures as files named by their jobs, and the file that is followed."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from cotenant.calls import Reply
from cotenant.cli.output import Followed, new_file
from cotenant.cli.save import pictures_of, safe_names, save
from cotenant.errors import EnvironmentFault, JobError
from cotenant.jobs.model import Identity, Job, canonical, error_line, is_large, result_line
from tests.contracts.jobs_house import FlakyStore

pytestmark = pytest.mark.unit

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 20


def job(custom_id: str) -> Job:
    return Job(Identity("acme", "b1", custom_id), "/v1/mockups", b"{}")


async def line_of(store: FlakyStore, the_job: Job, reply: Reply) -> bytes:
    stored = await store.put_output(the_job.identity, reply) if is_large(reply) else None
    return result_line(the_job, reply, stored)


async def test_pictures_come_out_of_every_way_in_which_a_result_carries_them() -> None:
    store = FlakyStore()
    listed = {
        "data": [
            {"b64_json": base64.b64encode(PNG).decode()},
            {"b64_json": base64.b64encode(b"\xff\xd8\xff!").decode()},
        ]
    }
    large_list = {"data": listed["data"], "padding": "x" * (2 << 20)}
    replies = [
        Reply(200, PNG, "image/png"),
        Reply(200, PNG + b"y" * (2 << 20), "image/webp; q=1"),
        Reply(200, canonical(listed)),
        Reply(200, canonical(large_list)),
    ]
    found = [
        await pictures_of(await line_of(store, job("a"), reply), job("a").identity, store.objects) for reply in replies
    ]
    assert found[0] == [(PNG, ".png")]
    assert [(len(data), suffix) for data, suffix in found[1]] == [(len(PNG) + (2 << 20), ".webp")]
    assert found[2] == found[3] == [(PNG, ".png"), (b"\xff\xd8\xff!", ".jpg")]


async def test_what_is_no_picture_is_passed_over() -> None:
    store, identity = FlakyStore(), job("a").identity
    texts = [
        await line_of(store, job("a"), Reply(200, b'{"choices": []}')),
        await line_of(store, job("a"), Reply(400, b'{"error": {}}')),
        await line_of(store, job("a"), Reply(200, b'{"text": "%s"}' % (b"x" * (2 << 20)))),
        error_line(identity, "expired", "too late"),
    ]
    assert [await pictures_of(text, identity, store.objects) for text in texts] == [[], [], [], []]


async def test_a_picture_is_found_where_the_store_is_now_and_only_among_the_batchs_own() -> None:
    store = FlakyStore()
    line = await line_of(store, job("a"), Reply(200, PNG + b"y" * (2 << 20), "image/png"))
    moved = line.replace(b"memory://", b"gs://elsewhere/long/ago")
    assert len(await pictures_of(moved, job("a").identity, store.objects)) == 1
    with pytest.raises(JobError, match="is not in memory://"):
        await pictures_of(line, Identity("other", "b1", "a"), store.objects)


def test_names_are_readable_safe_and_never_shared() -> None:
    ids = ["mug/cat.png/ff0000", "../../etc/passwd", "a/b", "a-b", "A-B", "ü", "…", ".hidden", "x" * 500, "plain"]
    names = safe_names([Identity("acme", "b1", custom_id) for custom_id in ids])
    by_id = {identity.custom_id: name for identity, name in names.items()}
    assert by_id["mug/cat.png/ff0000"] == "mug-cat.png-ff0000"
    assert by_id["plain"] == "plain"
    assert by_id["../../etc/passwd"] == "etc-passwd"
    assert by_id[".hidden"] == "hidden"
    assert len({name.casefold() for name in names.values()}) == len(ids)
    assert all("/" not in name and not name.startswith(".") and 0 < len(name) < 230 for name in names.values())


def test_a_job_called_after_its_artwork_is_not_called_a_picture_twice() -> None:
    cat, dog, other = (Identity("acme", "b1", name) for name in ("mug/cat.PNG", "mug/dog.png", "mug/dog.jpg"))
    names = safe_names([cat, dog, other])
    assert names[cat] == "mug-cat"
    assert names[dog] != names[other]
    assert {names[one].split("~")[0] for one in (dog, other)} == {"mug-dog"}


def test_further_pictures_of_a_job_get_numbers_and_no_draft_stays(tmp_path: Path) -> None:
    written = save(tmp_path / "out", "x", [(b"1", ".png"), (b"2", ".png")])
    assert [path.name for path in written] == ["x.png", "x~2.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x.png", "x~2.png"]


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="name another folder with --save"):
        save(tmp_path / "file", "x", [(b"1", ".png")])


def test_a_new_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), new_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    with new_file(path) as file:
        file.write(b"all of it")
    assert path.read_text() == "all of it"
    assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]


LINES = {name: json.dumps({"id": f"job_{name}", "custom_id": name}).encode() for name in "abc"}
IDS = {f"job_{name}" for name in "abc"}


def test_a_followed_file_knows_what_it_has_and_cuts_off_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Followed(path, IDS, "b1") as file:
        file.add("job_a", LINES["a"])
        file.add("job_b", LINES["b"])
    path.write_bytes(path.read_bytes()[:-7])
    with Followed(path, IDS, "b1") as file:
        assert file.written == {"job_a"}
        file.add("job_b", LINES["b"])
        file.add("job_c", LINES["c"])
    assert path.read_bytes() == b"".join(line + b"\n" for line in LINES.values())


@pytest.mark.parametrize("line", [b'{"id": "job_x"}', b"{", b"[]", b'{"id": 1}'])
def test_a_file_with_anything_else_in_it_is_left_alone(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "out.jsonl"
    before = LINES["a"] + b"\n" + line + b"\n" + b"half"
    path.write_bytes(before)
    with pytest.raises(EnvironmentFault, match=r"out\.jsonl:2: is no result of batch b1"), Followed(path, IDS, "b1"):
        pass
    assert path.read_bytes() == before


def test_two_followers_of_one_file_would_repeat_lines_so_the_second_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    again = Followed(path, IDS, "b1")
    with Followed(path, IDS, "b1"), pytest.raises(EnvironmentFault, match="another `cotenant results --follow`"):
        again.__enter__()
    with Followed(path, IDS, "b1"):
        pass
