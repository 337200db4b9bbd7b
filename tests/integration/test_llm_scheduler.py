"""vLLM's scheduler with our classes of work, driven by a worker that plays the model.

The scheduler, its KV cache manager and the messages to the worker are vLLM's own. The worker here keeps to the
contract of vLLM's model runners: of a request that is not in a step it forgets what they forget, it has rows for as
many requests as they have, and it reads every earlier token of a request from the KV cache blocks that it was given.
The next token is a function of all of them, so a block that was lost, or a token that is missing after a request
came back, shows in the answer. `ahead` is how many steps are scheduled before the first one's tokens are known.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cotenant.engines.llm.turns import Limits, rank

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

SLOTS, BLOCK, VOCABULARY, CONTEXT = 4, 16, 1000, 512
JOB = rank(batch=True)
INTERACTIVE = rank(batch=False)


def next_token(tokens: list[int]) -> int:
    return hash(tuple(tokens)) % VOCABULARY


def answer(prompt: list[int], tokens: int) -> list[int]:
    """What the model says to a prompt, alone."""
    said: list[int] = []
    for _ in range(tokens):
        said.append(next_token(prompt + said))
    return said


class Runner:
    """Plays a model runner: the first (`rows` unlimited), or the second (`second`), which keeps rows."""

    def __init__(self, *, ahead: bool, second: bool) -> None:
        self._ahead = ahead
        self._second = second
        self._cache: dict[tuple[int, int], int] = {}
        self._blocks: dict[str, list[int]] = {}
        self._tokens: dict[str, list[int]] = {}
        self._prompts: dict[str, list[int]] = {}
        self._before: set[str] = set()
        self.computed = 0

    def run(self, step: Any) -> Any:
        from vllm.v1.outputs import ModelRunnerOutput

        gone = set(step.finished_req_ids) | (set(step.preempted_req_ids or ()) if self._second else set())
        for name in gone:
            self._blocks.pop(name, None)
            self._tokens.pop(name, None)
        starts: dict[str, int] = {}
        for new in step.scheduled_new_reqs:
            self._prompts[new.req_id] = list(new.prompt_token_ids)
            self._tokens[new.req_id] = list(new.prefill_token_ids if self._second else new.prompt_token_ids)
            self._blocks[new.req_id] = list(new.block_ids[0])
            starts[new.req_id] = new.num_computed_tokens
        cached = step.scheduled_cached_reqs
        for index, name in enumerate(cached.req_ids):
            blocks = cached.new_block_ids[index]
            starts[name] = cached.num_computed_tokens[index]
            if name in cached.resumed_req_ids:
                self._blocks[name] = []
            self._blocks[name] += blocks[0] if blocks is not None else []
            said = cached.num_output_tokens[index]
            if self._ahead and not self._second and name not in self._before:
                # The sampled tokens are on the GPU only, and gone with the place in the batch.
                self._tokens[name] = self._prompts[name] + (list(cached.all_token_ids[name])[-said:] if said else [])
        assert len(self._tokens) <= SLOTS or not self._second, "the second runner has no more rows"
        names = list(step.num_scheduled_tokens)
        assert len(names) <= SLOTS
        sampled = [self._compute(name, starts[name], step.num_scheduled_tokens[name]) for name in names]
        self._before = set(names)
        return ModelRunnerOutput(names, {name: index for index, name in enumerate(names)}, sampled)

    def _compute(self, name: str, start: int, count: int) -> list[int]:
        tokens, blocks = self._tokens[name], self._blocks[name]
        assert start + count <= len(tokens), f"{name} is to compute tokens that it does not have"
        for at in range(start, start + count):
            self._cache[blocks[at // BLOCK], at % BLOCK] = tokens[at]
        self.computed += count
        seen = [self._cache[blocks[at // BLOCK], at % BLOCK] for at in range(start + count)]
        assert seen == tokens[: start + count], f"the KV cache of {name} holds something else"
        if start + count < len(tokens):
            return []
        tokens.append(next_token(seen))
        return tokens[-1:]


class Machine:
    """A scheduler and its worker, step by step."""

    def __init__(self, config: Any, *, blocks: int, ahead: bool, second: bool, limits: Limits) -> None:
        import torch
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from deployments import llm_scheduler

        config.cache_config.num_gpu_blocks = blocks
        config.scheduler_config.async_scheduling = ahead
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        kind = llm_scheduler.AsyncClassScheduler if ahead else llm_scheduler.ClassScheduler
        self.scheduler = kind(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            log_stats=False,
        )
        self.scheduler._limits = limits
        self.runner = Runner(ahead=ahead, second=second)
        self.blocks = blocks - 1  # vLLM keeps one for itself
        self.said: dict[str, list[int]] = {}
        self.finished: list[str] = []
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(BLOCK, sha256)
        self._under_way: deque[tuple[Any, Any]] = deque()
        self._ahead = 1 if ahead else 0

    def add(self, name: str, prompt: list[int], tokens: int, rank: int) -> Any:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        parameters = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        parameters.update_from_generation_config({}, eos_token_id=None)
        # Every request arrives later than the one before.
        arrived = 1000.0 + len(self.said)
        request = Request(
            name, prompt, parameters, None, arrival_time=arrived, priority=rank, block_hasher=self._hasher
        )
        self.said[name] = []
        self.scheduler.add_request(request)
        return request

    def step(self) -> dict[str, int]:
        """One step, as vLLM's engine core makes them; returns how many tokens of whom were scheduled."""
        tokens: dict[str, int] = {}
        if self.scheduler.has_requests():
            scheduled = self.scheduler.schedule()
            tokens = dict(scheduled.num_scheduled_tokens)
            self._under_way.append((scheduled, self.runner.run(scheduled)))
            if len(self._under_way) <= self._ahead and (tokens or self.scheduler.has_requests()):
                return tokens
        if self._under_way:
            self._hear(*self._under_way.popleft())
        return tokens

    def finish(self, most: int = 2000) -> None:
        while self.scheduler.has_requests() or self._under_way:
            self.step()
            most -= 1
            assert most, f"stuck with {self.scheduler.get_request_counts()} running and waiting"

    def free_blocks(self) -> int:
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def _hear(self, scheduled: Any, output: Any) -> None:
        for outputs in self.scheduler.update_from_output(scheduled, output).values():
            for one in outputs.outputs:
                self.said[one.request_id] += one.new_token_ids
                if one.finish_reason is not None:
                    self.finished.append(one.request_id)


KINDS = {"a step at a time": (False, False), "a step ahead": (True, False), "a step ahead, second runner": (True, True)}
Build = Callable[..., Machine]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 16,
        "num_attention_heads": 1, "num_hidden_layers": 1, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=list(KINDS.values()), ids=list(KINDS))
def build(request: pytest.FixtureRequest, model: Path) -> Iterator[Build]:
    from vllm.engine.arg_utils import EngineArgs

    ahead, second = request.param
    config = EngineArgs(
        model=str(model), skip_tokenizer_init=True, dtype="float32", max_model_len=CONTEXT, max_num_seqs=SLOTS,
        max_num_batched_tokens=CONTEXT, block_size=BLOCK, scheduling_policy="priority", enforce_eager=True,
        kv_cache_memory_bytes=1 << 20,
    ).create_engine_config()  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        # Asked for any earlier, vLLM would look for what that runner needs.
        patch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(int(second)))
        seats = SLOTS if second else None

        def machine(*, blocks: int = 200, beside: int = 0, prompt_tokens: int = 64, beside_tokens: int = 16) -> Machine:
            limits = Limits(SLOTS, beside, prompt_tokens, beside_tokens, seats)
            return Machine(config, blocks=blocks, ahead=ahead, second=second, limits=limits)

        yield machine


def prompt(seed: int, length: int = 20) -> list[int]:
    return random.Random(seed).choices(range(VOCABULARY), k=length)


def test_jobs_sit_out_while_an_interactive_answer_is_made_and_go_on_where_they_stopped(build: Build) -> None:
    machine = build()
    for number in range(3):
        machine.add(f"job {number}", prompt(number), 30, JOB)
    for _ in range(5):
        machine.step()
    computed = machine.runner.computed
    machine.add("chat", prompt(9), 10, INTERACTIVE)
    steps = [machine.step() for _ in range(10)]
    assert all(set(step) <= {"chat"} for step in steps), "no job took part"
    machine.finish()
    assert machine.finished[0] == "chat"
    for number in range(3):
        assert machine.said[f"job {number}"] == answer(prompt(number), 30)
    assert machine.said["chat"] == answer(prompt(9), 10)
    assert machine.runner.computed - computed == 29 + 3 * (20 + 29) - computed, "nothing was computed twice"


@pytest.mark.parametrize("jobs", [SLOTS, 2 * SLOTS], ids=["all slots", "all slots, and as many wait"])
def test_as_many_interactive_requests_as_there_are_slots_run_beside_jobs_that_hold_them_all(
    build: Build, jobs: int
) -> None:
    machine = build()
    for number in range(jobs):
        machine.add(f"job {number}", prompt(number), 30, JOB)
    for _ in range(6):
        machine.step()
    for number in range(SLOTS):
        machine.add(f"chat {number}", prompt(100 + number), 8, INTERACTIVE)
    machine.finish()
    assert {name.split()[0] for name in machine.finished[:SLOTS]} == {"chat"}
    for name, said in machine.said.items():
        kind, number = name.split()
        assert said == answer(prompt(int(number) + (100 if kind == "chat" else 0)), 8 if kind == "chat" else 30), name
    assert machine.free_blocks() == machine.blocks


def test_interactive_work_takes_the_memory_of_the_last_job_and_that_job_is_computed_again(build: Build) -> None:
    machine = build(blocks=1 + 14)
    first = machine.add("job 1", prompt(1, 60), 30, JOB)
    last = machine.add("job 2", prompt(2, 60), 30, JOB)
    for _ in range(6):
        machine.step()
    assert machine.free_blocks() < 6
    machine.add("chat", prompt(3, 60), 40, INTERACTIVE)
    machine.finish()
    assert machine.finished == ["chat", "job 1", "job 2"]
    assert last.num_preemptions >= 1
    assert first.num_preemptions == 0
    assert machine.said["chat"] == answer(prompt(3, 60), 40)
    assert machine.said["job 2"] == answer(prompt(2, 60), 30)
    assert machine.free_blocks() == machine.blocks


def test_a_job_that_sits_out_frees_its_memory_at_once_when_it_is_cancelled(build: Build) -> None:
    from vllm.v1.request import RequestStatus

    machine = build()
    machine.add("job", prompt(1), 30, JOB)
    for _ in range(4):
        machine.step()
    machine.add("chat", prompt(2), 10, INTERACTIVE)
    machine.step()
    machine.step()
    held = machine.free_blocks()
    machine.scheduler.finish_requests("job", RequestStatus.FINISHED_ABORTED)
    assert machine.free_blocks() == held + 2
    assert machine.scheduler.get_request_counts() == (1, 0)
    machine.finish()
    assert machine.said["chat"] == answer(prompt(2), 10)
    assert machine.free_blocks() == machine.blocks


def test_an_engine_that_goes_to_sleep_drops_those_who_sit_out_too(build: Build) -> None:
    from vllm.v1.core.sched.interface import PauseState
    from vllm.v1.request import RequestStatus

    machine = build()
    machine.add("job", prompt(1), 30, JOB)
    machine.step()
    machine.add("chat", prompt(2), 10, INTERACTIVE)
    machine.step()
    machine.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    machine.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    machine.finish()
    assert machine.scheduler.reset_prefix_cache()
    machine.scheduler.set_pause_state(PauseState.UNPAUSED)
    machine.add("job after", prompt(1), 10, JOB)
    machine.finish()
    assert machine.said["job after"] == answer(prompt(1), 10)


def test_an_engine_that_drains_lets_jobs_end_though_interactive_requests_wait(build: Build) -> None:
    from vllm.v1.core.sched.interface import PauseState

    machine = build()
    machine.add("job", prompt(1), 10, JOB)
    machine.step()
    machine.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    machine.add("chat", prompt(2), 10, INTERACTIVE)
    for _ in range(12):
        machine.step()
    assert machine.finished == ["job"]


def test_some_jobs_may_run_beside_interactive_requests_and_begin_there_in_small_chunks(build: Build) -> None:
    machine = build(beside=2, beside_tokens=16)
    machine.add("chat", prompt(0), 60, INTERACTIVE)
    machine.step()
    for number in range(1, 4):
        machine.add(f"job {number}", prompt(number, 40), 5, JOB)
    steps = [machine.step() for _ in range(20)]
    for step in steps:
        jobs = {name: tokens for name, tokens in step.items() if name != "chat"}
        assert len(jobs) <= 2
        assert sum(jobs.values()) <= 2 + 16
    assert set(machine.finished) >= {"job 1", "job 2"}
    assert all("chat" in step for step in steps)
    machine.finish()
    assert machine.said["chat"] == answer(prompt(0), 60)


def test_prompts_of_jobs_are_computed_in_chunks_and_hold_up_no_job_that_decodes(build: Build) -> None:
    machine = build(prompt_tokens=64)
    machine.add("job 1", prompt(1), 40, JOB)
    machine.step()
    machine.add("job 2", prompt(2, 300), 5, rank(batch=True, priority=9))
    steps = [machine.step() for _ in range(5)]
    assert [step["job 1"] for step in steps] == [1] * 5
    assert all(sum(step.values()) <= 2 + 64 for step in steps)
    machine.finish()
    assert machine.said["job 2"] == answer(prompt(2, 300), 5)


def test_no_job_begins_while_an_interactive_request_waits_for_its_grammar(build: Build) -> None:
    from vllm.v1.request import RequestStatus

    machine = build(beside=2)
    chat = machine.add("chat", prompt(1), 10, INTERACTIVE)
    machine.scheduler.waiting.remove_request(chat)
    chat.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    machine.scheduler._enqueue_waiting_request(chat)
    machine.scheduler._try_promote_blocked_waiting_request = lambda request: False
    machine.add("job", prompt(2), 10, JOB)
    assert [machine.step() for _ in range(3)] == [{}, {}, {}]
    machine.scheduler.finish_requests("chat", RequestStatus.FINISHED_ABORTED)
    machine.finish()
    assert machine.finished == ["job"]


def test_jobs_begin_by_their_priority_among_jobs(build: Build) -> None:
    machine = build()
    for number in range(SLOTS):
        machine.add(f"job {number}", prompt(number), 10, JOB)
    machine.step()
    machine.add("late", prompt(11), 10, rank(batch=True, priority=-5))
    machine.add("soon", prompt(12), 10, rank(batch=True, priority=9))
    machine.finish()
    assert machine.finished.index("soon") < machine.finished.index("late")


@pytest.mark.parametrize("beside", [0, 2])
@pytest.mark.parametrize("seed", range(6))
def test_whatever_comes_and_goes_answers_are_right_and_interactive_requests_do_not_wait(
    build: Build, seed: int, beside: int
) -> None:
    from vllm.v1.request import RequestStatus

    chance = random.Random(seed)
    # The fewest that hold two interactive requests of full length.
    machine = build(blocks=1 + chance.choice([20, 40, 100]), beside=beside)
    asked: dict[str, tuple[list[int], int]] = {}
    gone: set[str] = set()
    waits: dict[str, int] = {}
    for number in range(300):
        name = str(number)
        if chance.random() < 0.25:
            asked[name] = prompt(number, chance.randint(1, 120)), chance.randint(1, 40)
            chat = chance.random() < 0.4 and len(waits.keys() - gone) < 2
            machine.add(name, *asked[name], INTERACTIVE if chat else JOB)
            if chat:
                waits[name] = 0
        if asked and chance.random() < 0.03 and (name := chance.choice(list(asked))) not in gone:
            machine.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
            gone.add(name)
        step = machine.step()
        gone.update(machine.finished)
        for name in waits.keys() - gone - step.keys():
            waits[name] += 1
        assert not step.keys() & waits.keys() or len(step.keys() - waits.keys()) <= beside
    machine.finish()
    for name, (words, tokens) in asked.items():
        said = machine.said[name]
        assert said == answer(words, tokens if name in machine.finished else len(said)), name
    # A step for a seat of the second runner, and one in which the last token is on its way.
    assert max(waits.values()) <= 2
    assert machine.free_blocks() == machine.blocks
