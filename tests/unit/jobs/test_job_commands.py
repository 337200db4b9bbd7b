"""`cotenant submit` and `cotenant results`, without a platform behind them."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cotenant.calls import Reply, error_reply
from cotenant.cli import jobs_door
from cotenant.cli.output import Followed
from cotenant.errors import SourceUnavailable
from cotenant.jobs import model
from cotenant.jobs.desk.batches import BatchRecord
from cotenant.jobs.errand import Errand
from cotenant.jobs.store.records import Board, Records, WorkloadPace
from tests.contracts.command_house import PLATFORM, House, cotenant, file_of
from tests.contracts.jobs_house import chat, render

pytestmark = pytest.mark.unit


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House.build(tmp_path, monkeypatch)


def art(house: House, name: str, *, side: int = 8, noise: bool = False) -> Path:
    path = house.folder / "art" / name
    path.parent.mkdir(exist_ok=True)
    image = Image.effect_noise((side, side), 100).convert("RGB") if noise else Image.new("RGB", (side, side), "red")
    image.save(path, "PNG")
    return path


def record_of(house: House, batch: str, tenant: str = "default") -> BatchRecord:
    (path,) = (house.folder / "results").glob(f"{tenant}-*/batches/{batch}-*.json")
    return BatchRecord.load(path.read_bytes())


# --- submit ---


def test_submit_prints_the_batch_and_a_line_for_each_job(house: House) -> None:
    (house.folder / "jobs.jsonl").write_bytes(file_of(chat("a"), render("b")))
    result = cotenant("submit", "jobs.jsonl", "--tenant", "acme")
    assert result.exit_code == 0, result.output
    name, *ids = result.stdout.splitlines()
    assert name.startswith("batch_")
    assert [line.split("  ") for line in ids] == [
        [model.Identity("acme", name, custom_id).job_id, custom_id] for custom_id in ("a", "b")
    ]
    assert f"cotenant results {name}" in result.stderr.replace("\n", " ")


def test_a_submission_is_one_file_one_record_and_one_errand(house: House) -> None:
    result = cotenant("submit", "-", "--tenant", "acme", stdin=file_of(chat("a"), chat("b")))
    name = result.stdout.splitlines()[0]
    assert house.errands == [Errand("batch", "acme", name)]
    assert [topic for topic, _ in house.published] == ["jobs-clerk"]
    kinds = [key.split("/")[1] for key in house.stored]
    assert sorted(kinds) == ["batches", "by-age", "files", "files"]
    record = record_of(house, name, "acme")
    assert (record.endpoint, record.priority, record.webhook) == ("*", 0, None)


def test_wishes_go_with_the_batch(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    options = ("--priority", "7", "--deadline", "2h", "--webhook", "https://example.com/hook")
    result = cotenant("submit", "-", "--batch", "mine", *options, stdin=file_of(chat("a")))
    assert result.exit_code == 0, result.output
    record = record_of(house, "mine")
    assert (record.priority, record.webhook) == (7, "https://example.com/hook")
    assert record.deadline_at_s == pytest.approx(now + 7200, abs=30)
    house.ingress(lambda job: Reply(200, b"{}") if job.wishes.priority == 7 and job.wishes.deadline_at_s else None)
    assert house.done == {"a": 1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--deadline", "soon"), "takes a duration (2h, 1h30m, 7d) or a time with its zone"),
        (("--deadline", "2020-01-01T00:00:00Z"), "has passed"),
        (("--priority", "11"), "-10<=x<=10"),
        (("--webhook", "http://10.0.0.1/x"), "webhook"),
        (("--webhook", "nonsense"), "webhook"),
        (("--batch", ""), "a string that is not empty"),
        (("--batch", "job_1"), "begins with job_"),
        (("--tenant", "x" * 600), "600 bytes"),
        (("--size", "512"), "--size is for designs"),
        (("--template", "mug"), "cut.png"),
        (("--color", "red"), "--color is for designs"),
    ],
    ids=str,
)
def test_a_wrong_option_is_said_and_nothing_is_stored(house: House, options: tuple[str, ...], said: str) -> None:
    (house.folder / "cut.png").write_bytes(b"no picture")
    source = "cut.png" if "--template" in options else "-"
    result = cotenant("submit", source, *options, stdin=file_of(chat("a")))
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert house.stored == [] and house.published == []


def test_a_wrong_file_is_refused_line_by_line_and_nothing_is_stored(house: House) -> None:
    lines = file_of(chat("a"), chat("a")) + b"{\n" + file_of(chat("s", stream=True))
    (house.folder / "jobs.jsonl").write_bytes(lines)
    result = cotenant("submit", "jobs.jsonl")
    assert result.exit_code == 2
    assert "jobs.jsonl:2: custom_id 'a' was given on line 1" in result.stderr
    assert "jobs.jsonl:3: is not JSON" in result.stderr
    assert "jobs.jsonl:4: a job has nobody to stream to" in result.stderr
    assert house.stored == [] and house.published == []


def test_a_job_that_names_a_file_which_is_not_there_is_refused_before_anything_is_stored(house: House) -> None:
    line = render("a", artwork={"file_id": "file-" + "0" * 24})
    result = cotenant("submit", "-", stdin=file_of(chat("b"), line))
    assert result.exit_code == 2
    assert "stdin.jsonl: job 'a': artwork: there is no file" in result.stderr
    assert house.stored == [] and house.published == []


def test_without_a_platform_or_a_queue_submit_says_what_to_start(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST")
    result = cotenant("submit", "-", stdin=file_of(chat("a")))
    assert result.exit_code == 1
    assert "cotenant up -e local" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (house.folder / "results").exists()


def test_a_file_that_is_not_there_is_said_so(house: House) -> None:
    result = cotenant("submit", "nowhere.jsonl")
    assert result.exit_code == 2
    assert "nowhere.jsonl:1: can't be read" in result.stderr


def test_the_same_name_again_repeats_no_work_however_the_file_is_written(house: House) -> None:
    first = cotenant("submit", "-", "--batch", "mine", stdin=file_of(chat("a", n=1, m=2), chat("b")))
    house.ingress()
    shuffled = b'{"url": "/v1/chat/completions", "method": "POST", "custom_id": "a", "body": '
    shuffled += b'{"m": 2, "n": 1, "messages": [], "model": "tiny"}}\n\n' + file_of(chat("b"))
    again = cotenant("submit", "-", "--batch", "mine", stdin=shuffled)
    house.ingress()
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    assert house.done == {"a": 1, "b": 1}
    assert "has ended (completed)" in again.stderr


def test_the_same_name_with_other_jobs_is_refused(house: House) -> None:
    cotenant("submit", "-", "--batch", "mine", stdin=file_of(chat("a")))
    before = house.stored
    result = cotenant("submit", "-", "--batch", "mine", stdin=file_of(chat("a", n=2)))
    assert result.exit_code == 1
    assert "batch mine exists with other jobs; submit these under another name" in result.stderr
    assert house.stored == before
    assert len(house.errands) == 1


def test_the_same_name_of_another_tenant_is_another_batch(house: House) -> None:
    for tenant, n in (("acme", 1), ("other", 2)):
        assert cotenant("submit", "-", "--batch", "x", "--tenant", tenant, stdin=file_of(chat("a", n=n))).exit_code == 0
    assert house.errands == [Errand("batch", "acme", "x"), Errand("batch", "other", "x")]


def test_a_queue_that_fails_when_all_is_stored_says_how_to_finish_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(topic: str, messages: Any) -> None:
        raise SourceUnavailable("the emulator died")

    class Down:
        async def __aenter__(self) -> Any:
            return down

        async def __aexit__(self, *_: object) -> None:
            return None

    with monkeypatch.context() as patch:
        patch.setattr(jobs_door, "publisher", lambda door: Down())
        result = cotenant("submit", "-", "--batch", "mine", stdin=file_of(chat("a")))
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert "batch mine is kept and not on its way yet: the emulator died; `cotenant submit --batch mine`" in said
    assert cotenant("submit", "-", "--batch", "mine", stdin=file_of(chat("a"))).exit_code == 0
    house.ingress()
    assert house.done == {"a": 1}


def test_a_batch_may_be_called_what_a_terminal_would_take_for_colours(house: House) -> None:
    result = cotenant("submit", "-", "--batch", "[/red]", stdin=file_of(chat("[bold]")))
    assert result.exit_code == 0, result.output
    house.ingress(lambda job: None)
    waited = cotenant("results", "[/red]", "--timeout", "0.1")
    assert (waited.exit_code, "missing 1 after 0.1 s: [bold]" in waited.stderr) == (1, True)


# --- designs ---


def test_designs_become_jobs_whose_pictures_are_stored_once(house: House) -> None:
    small, large = art(house, "cat.png"), art(house, "dog.png", side=128, noise=True)
    result = cotenant("submit", "--template", "mug", "--designs", "art/*.png", "--color", "#f00", "--color", "#0f0")
    assert result.exit_code == 0, result.output
    ids = [line.split("  ")[1] for line in result.stdout.splitlines()[1:]]
    assert ids == ["mug/cat.png/ff0000", "mug/cat.png/00ff00", "mug/dog.png/ff0000", "mug/dog.png/00ff00"]
    pictures = [path for path in (house.folder / "results").rglob("*.data") if path.read_bytes()[:4] == b"\x89PNG"]
    assert [path.read_bytes() for path in pictures] == [large.read_bytes()]
    house.ingress()
    assert sorted(house.done) == sorted(ids)
    assert house.bodies["mug/dog.png/ff0000"] == large.read_bytes()
    artwork = json.loads(house.bodies["mug/cat.png/ff0000"])["artwork"]
    assert base64.b64decode(artwork) == small.read_bytes()


def test_designs_may_be_named_without_quotes_so_that_the_shell_expands_them(house: House) -> None:
    paths = [str(art(house, f"{n}.png", side=8 + n)) for n in range(3)]
    result = cotenant("submit", "--template", "mug", "--designs", *paths)
    assert [line.split("  ")[1] for line in result.stdout.splitlines()[1:]] == ["mug/0.png", "mug/1.png", "mug/2.png"]


def test_the_same_designs_under_the_same_name_repeat_no_work(house: House) -> None:
    art(house, "dog.png", side=128, noise=True)
    options = ("--template", "mug", "--designs", "art", "--batch", "spring")
    first = cotenant("submit", *options)
    before = house.stored
    again = cotenant("submit", *options)
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    assert house.stored == before
    house.ingress()
    assert house.done == {"mug/dog.png": 1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--template", "mug"), "give --designs"),
        (("--designs", "art/*.png"), "give a --template"),
        (("--template", "mug", "--designs", "nothing/*.png"), "matches no file"),
        (("--template", "mugg", "--designs", "art/*.png"), "did you mean 'mug'?"),
        (("--template", "mug", "--designs", "art/*.png", "--color", "reddish"), "--color: takes"),
        ((), "give one file of jobs, - for stdin, or --template and --designs"),
    ],
    ids=str,
)
def test_designs_that_are_half_asked_for_are_refused(house: House, options: tuple[str, ...], said: str) -> None:
    art(house, "cat.png")
    result = cotenant("submit", *options)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert house.stored == [] and house.published == []


# --- the dry run ---


def test_a_dry_run_checks_and_estimates_and_leaves_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST")
    result = cotenant("submit", "-", "--dry-run", stdin=file_of(chat("a"), render("b", size=512, samples=16)))
    assert result.exit_code == 0, result.output
    assert "mockups" in result.stdout and "writer" in result.stdout
    assert "2 jobs" in result.stdout and "no price" in result.stdout
    assert "? is assumed" in result.stdout
    assert not (house.folder / "results").exists()
    assert house.published == []


def test_a_dry_run_uses_the_measured_pace_of_the_platform_that_runs(house: House) -> None:
    async def put() -> None:
        pace = WorkloadPace(slots=4, mean_s=3.0)
        await Records(house.store.objects).put_board(Board("i1", time.time(), workloads={"writer": pace}))

    asyncio.run(put())
    result = cotenant("submit", "-", "--dry-run", stdin=file_of(*[chat(f"c{n}") for n in range(80)]))
    assert "3 s" in result.stdout and "1 min" in result.stdout
    assert "? is assumed" not in result.stdout


def test_a_dry_run_says_that_the_deadline_is_too_soon(house: House) -> None:
    jobs = file_of(*[chat(f"c{n}") for n in range(500)])
    soon, late = (cotenant("submit", "-", "--dry-run", "--deadline", text, stdin=jobs).stdout for text in ("1m", "7d"))
    assert "what has not begun by then is not done" in " ".join(soon.split())
    assert "not begun" not in late


def test_a_dry_run_refuses_what_a_submission_would(house: House) -> None:
    cotenant("submit", "-", "--batch", "mine", stdin=file_of(chat("a")))
    wrong = cotenant("submit", "-", "--dry-run", stdin=b"{\n")
    other = cotenant("submit", "-", "--dry-run", "--batch", "mine", stdin=file_of(chat("b")))
    same = cotenant("submit", "-", "--dry-run", "--batch", "mine", stdin=file_of(chat("a")))
    assert (wrong.exit_code, other.exit_code, same.exit_code) == (2, 1, 0)
    assert "was submitted before" in same.stdout


# --- results ---


def submitted(house: House, *jobs: Any, batch: str = "mine") -> None:
    assert cotenant("submit", "-", "--batch", batch, stdin=file_of(*jobs)).exit_code == 0


def test_results_writes_openais_output_file(house: House) -> None:
    submitted(house, chat("a"), render("b"))
    house.ingress()
    result = cotenant("results", "mine", "-o", "out.jsonl")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (house.folder / "out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["a", "b"]
    assert lines[0]["response"]["body"] == {"ok": True}
    assert sorted(path.name for path in house.folder.iterdir()) == ["out.jsonl", "platform.yaml", "results"]


def test_results_names_what_is_missing_at_the_timeout_and_exits_1(house: House) -> None:
    submitted(house, chat("a"), chat("b"))
    house.ingress(lambda job: Reply(200, b"{}") if job.identity.custom_id == "a" else None)
    result = cotenant("results", "mine", "--timeout", "0.3")
    assert result.exit_code == 1
    assert "missing 1 after 0.3 s: b" in result.stderr
    assert [json.loads(line)["custom_id"] for line in result.stdout.splitlines()] == ["a"]


def test_results_of_a_batch_that_nobody_has_begun_with_say_so(house: House) -> None:
    submitted(house, chat("a"))
    result = cotenant("results", "mine", "--timeout", "0.3", "-o", "out.jsonl")
    assert result.exit_code == 1
    assert "no ingress has begun with batch mine" in " ".join(result.stderr.split())
    assert not (house.folder / "out.jsonl").exists()


def test_results_of_an_unknown_batch_are_a_clear_error(house: House) -> None:
    submitted(house, chat("a"))
    result = cotenant("results", "nothing")
    assert result.exit_code == 1
    assert "no batch nothing of tenant default" in result.stderr


def test_looking_for_results_where_nothing_was_submitted_makes_no_folder(house: House) -> None:
    for command in (("results", "mine"), ("jobs", "ls"), ("jobs", "show", "mine")):
        result = cotenant(*command)
        assert result.exit_code == 1
        assert "nothing was submitted from this folder" in " ".join(result.stderr.split())
    assert not (house.folder / "results").exists()


def test_results_of_a_batch_whose_file_was_refused_say_what_was_wrong(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    (house.folder / "platform.yaml").write_text(PLATFORM.replace("templates: [mug]", "templates: [mug, vase]"))
    submitted(house, chat("a"), render("b", template="vase"))
    house.ingress()
    result = cotenant("results", "mine")
    assert result.exit_code == 2
    assert "batch mine: line 2: the template 'vase' does not exist" in result.stderr


def test_a_cancelled_batch_has_a_line_for_each_job_also_for_those_that_never_began(house: House) -> None:
    submitted(house, *[chat(f"c{n}") for n in range(200)])
    house.ingress(lambda job: Reply(200, b"{}") if job.identity.custom_id == "c3" else None, rounds=2)
    assert cotenant("jobs", "cancel", "mine").exit_code == 0
    house.ingress()
    result = cotenant("results", "mine", "--timeout", "5")
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["custom_id"] for line in lines] == [f"c{n}" for n in range(200)]
    assert {line["error"]["code"] for line in lines if line["custom_id"] != "c3"} == {"batch_cancelled"}


def test_a_store_in_memory_cannot_be_read_from_here(house: House) -> None:
    (house.folder / "platform.yaml").write_text(PLATFORM + 'jobs: {store: "memory://"}\n')
    result = cotenant("results", "mine")
    assert result.exit_code == 1
    assert "only the ingress can read" in result.stderr


def test_a_followed_file_is_taken_up_again_without_loss_or_repetition(house: House) -> None:
    submitted(house, *[chat(f"c{n}") for n in range(4)])
    house.ingress(lambda job: Reply(200, b"{}") if job.identity.custom_id in ("c1", "c3") else None)
    first = cotenant("results", "mine", "--follow", "-o", "out.jsonl", "--timeout", "0.3")
    assert first.exit_code == 1
    path = house.folder / "out.jsonl"
    assert [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] == ["c1", "c3"]
    path.write_bytes(path.read_bytes()[:-9])
    house.ingress()
    second = cotenant("results", "mine", "--follow", "-o", "out.jsonl")
    assert second.exit_code == 0, second.output
    assert [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] == ["c1", "c0", "c2", "c3"]
    third = cotenant("results", "mine", "--follow", "-o", "out.jsonl")
    assert (third.exit_code, "wrote 0 lines" in third.stderr) == (0, True)


def test_pictures_are_saved_by_their_names_and_lines_only_where_they_were_asked_for(house: House) -> None:
    art(house, "cat.png")
    cotenant("submit", "--template", "mug", "--designs", "art", "--color", "#f00", "--color", "#0f0", "--batch", "b")
    large = b"\x89PNG" + b"x" * (2 << 20)
    picture = {"mug/cat.png/ff0000": large, "mug/cat.png/00ff00": b"\x89PNG small"}
    house.ingress(lambda job: Reply(200, picture[job.identity.custom_id], "image/png"))
    result = cotenant("results", "b", "--save", "out")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "2 pictures to out" in result.stderr
    saved = {path.name: path.read_bytes() for path in (house.folder / "out").iterdir()}
    assert saved == {"mug-cat.png-ff0000.png": large, "mug-cat.png-00ff00.png": b"\x89PNG small"}


def test_failed_jobs_are_counted_and_save_no_picture(house: House) -> None:
    submitted(house, render("a"), render("b"))
    house.ingress(
        lambda job: error_reply(400, "no") if job.identity.custom_id == "a" else Reply(200, b"\x89PNG", "image/png")
    )
    result = cotenant("results", "mine", "--save", "out", "-o", "out.jsonl")
    assert result.exit_code == 0, result.output
    assert "2 lines to out.jsonl and 1 pictures to out, 1 of them failed" in " ".join(result.stderr.split())
    assert [path.name for path in (house.folder / "out").iterdir()] == ["b.png"]


def test_followed_lines_go_to_stdout_as_their_jobs_settle(house: House) -> None:
    submitted(house, chat("a"), chat("b"))
    house.ingress(lambda job: Reply(200, b"{}") if job.identity.custom_id == "b" else None)
    first = cotenant("results", "mine", "--follow", "--timeout", "0.2")
    house.ingress()
    second = cotenant("results", "mine", "--follow")
    assert [json.loads(line)["custom_id"] for line in first.stdout.splitlines()] == ["b"]
    assert [json.loads(line)["custom_id"] for line in second.stdout.splitlines()] == ["a", "b"]
    assert (first.exit_code, second.exit_code) == (1, 0)


def test_ctrl_c_while_following_loses_nothing_and_the_same_again_repeats_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(house, *[chat(f"c{n}") for n in range(40)])
    house.ingress()
    add = Followed.add

    def press(self: Followed, job_id: str, line: bytes) -> None:
        add(self, job_id, line)
        if len(self.written) == 20:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Followed, "add", press)
        first = cotenant("results", "mine", "--follow", "-o", "out.jsonl")
    assert first.exit_code == 1
    assert "the same command goes on" in " ".join(first.stderr.split())
    there = len((house.folder / "out.jsonl").read_text().splitlines())
    assert 20 <= there < 40
    second = cotenant("results", "mine", "--follow", "-o", "out.jsonl")
    assert second.exit_code == 0
    lines = (house.folder / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == [f"c{n}" for n in range(40)]
