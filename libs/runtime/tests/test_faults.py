"""What a worker does when told to leave, when others stop or fail, and when a checkpoint is damaged."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distroml.manifest import Keys, decode_manifest
from distroml.workerlink import (
    AwaitGeneration,
    CorruptionFound,
    Drain,
    GenerationBroken,
    Heartbeat,
    PlanChosen,
    Samples,
    StepRecorded,
    Stop,
    Stopping,
    WorkerFailed,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(100)]


def accounted(steps: list[dict], total: int) -> list[tuple[int, int, int]]:
    last = {line["step"]: line for line in steps}
    assert sorted(last) == list(range(1, total + 1))
    return [(last[n]["epoch"], last[n]["from"], last[n]["to"]) for n in range(1, total + 1)]


def expected_ranges(total: int, size: int = 64, batch: int = 14) -> list[tuple[int, int, int]]:
    per_epoch = size // batch
    return [(n // per_epoch, n % per_epoch * batch, (n % per_epoch + 1) * batch) for n in range(total)]


@pytest.mark.parametrize(("before", "then"), [(3, 2), (2, 3)])
def test_a_drain_to_another_world_size_loses_no_sample(agent: Callable, before: int, then: int) -> None:
    run = agent(before, step_s=0.03, steps=20, checkpoint_every=100)
    run.start()
    run.until(lambda: any(line["step"] >= 4 for line in run.steps()), "four steps")
    for name in list(run.workers):
        run.tell(name, Drain(number=1, reason="resize"))
    run.until(lambda: all(worker.awaits >= 1 for worker in run.workers.values()), "all to leave")
    assert run.committed, "a drain saves first"
    drained_at = run.committed[-1].step
    assert drained_at == max(line["step"] for line in run.steps())
    stay = sorted(run.workers)[:then]
    for name in set(run.workers) - set(stay):
        os.kill(run.workers.pop(name).pid, signal.SIGKILL)
    run.form(set(stay), then)
    result = run.finish()
    assert (result["world"], result["step"]) == (then, 20)
    assert accounted(run.steps(), 20) == expected_ranges(20)
    made = [(line["step"], line["generation"]) for line in run.steps() if line["rank"] == 0]
    assert made == [(n, 1 if n <= drained_at else 2) for n in range(1, 21)], "no step was made twice"


def main_thread_sleeps(pid: int) -> bool:
    """Whether the process's first thread waits in the kernel and has not run for a while."""

    def look() -> tuple[str, str]:
        status = Path(f"/proc/{pid}/task/{pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in status)
        return fields["State"].strip()[0], fields["voluntary_ctxt_switches"].strip()

    before = look()
    time.sleep(0.2)
    return before[0] == "S" and look() == before


def test_a_stopped_peer_does_not_hold_the_others(agent: Callable) -> None:
    run = agent(3, fault={"rank": 1, "generation": 1, "step": 5, "do": "stop"})
    run.start()
    run.until(lambda: max((line["step"] for line in run.steps()), default=0) == 4, "the fault")
    stopped = next(name for name, worker in run.workers.items() if worker.rank == 1)
    survivors = [worker for name, worker in run.workers.items() if name != stopped]
    run.until(lambda: all(main_thread_sleeps(worker.pid) for worker in survivors), "the others to wait for rank 1")
    # The peer is alive, so no connection ends by itself: only the message can free the others.
    for name in set(run.workers) - {stopped}:
        run.tell(name, GenerationBroken(number=1, cause="rank 1 is silent"))
    run.until(lambda: all(worker.awaits == 1 for worker in survivors), "the survivors to leave", timeout_s=5)
    os.kill(run.workers[stopped].pid, signal.SIGKILL)
    run.next_generation({stopped}, "killed")
    assert run.finish()["generation"] == 2
    assert accounted(run.steps(), 12) == expected_ranges(12)


@pytest.mark.parametrize(
    ("fault", "category", "message"),
    [
        ("raise", "exception", 'KeyError: "the user\'s own mistake"'),
        ("allocate", "out_of_memory", "can't allocate memory: you tried to allocate 1125899906842624 bytes"),
    ],
)
def test_the_users_exception_is_reported_and_ends_the_process_with_1(
    agent: Callable, fault: str, category: str, message: str
) -> None:
    run = agent(2, fault={"rank": 1, "generation": 1, "step": 5, "do": fault})
    run.start()
    bad = next(name for name, worker in run.workers.items() if worker.rank == 1)
    good = next(name for name in run.workers if name != bad)
    run.until(lambda: run.ended().get(bad) is not None, "the end of the worker that raised")
    assert run.ended()[bad] == 1
    failed = run.workers[bad].failed
    assert failed is not None
    assert failed.category == category
    assert message in failed.message
    assert "do_fault" in failed.traceback
    assert failed.last_step == 4
    run.until(lambda: run.workers[good].awaits == 1, "the other to await")
    assert run.workers[good].failed is None
    assert run.workers[bad].awaits == -1, "a worker that fails is not ready for anything"
    recorded = run.of_kind(StepRecorded)
    assert [record.why for record in recorded if record.why in ("generation", "failure")] == ["generation", "failure"]


def test_values_that_are_no_numbers_end_all_ranks_before_the_optimizer_moves(agent: Callable) -> None:
    run = agent(2, fault={"rank": 1, "generation": 1, "step": 5, "do": "nan"})
    run.start()
    run.until(lambda: len(run.ended()) == 2, "both to end")
    assert set(run.ended().values()) == {1}
    failed = run.of_kind(WorkerFailed)
    assert {message.category for message in failed} == {"non_finite"}
    assert all("step 5" in message.message and "lower the learning rate" in message.message for message in failed)


def test_a_stop_saves_and_ends_with_0(agent: Callable) -> None:
    run = agent(2, step_s=0.03, steps=100_000, checkpoint_every=1000)
    run.start()
    run.until(lambda: any(line["step"] >= 3 for line in run.steps()), "three steps")
    # Ranks hear of it at different times; they must still end after the same step.
    first, second = sorted(run.workers)
    run.tell(first, Stop(reason="pause", grace_s=30, checkpoint=True))
    run.until(lambda: run.of_kind(Stopping), "the first to stop")
    run.tell(second, Stop(reason="pause", grace_s=30, checkpoint=True))
    run.until(lambda: len(run.ended()) == 2, "both to end")
    assert set(run.ended().values()) == {0}
    steps = {message.step for message in run.of_kind(Stopping)}
    assert len(steps) == 1
    assert run.committed[-1].step == steps.pop()
    assert not (run.folder / "result.json").exists(), "what follows fit() is not run"


def test_a_stop_without_checkpoint_ends_at_once(agent: Callable) -> None:
    run = agent(2, step_s=0.03, steps=100_000, checkpoint_every=1000)
    run.start()
    run.until(lambda: any(line["step"] >= 3 for line in run.steps()), "three steps")
    run.tell_all(Stop(reason="cancel", grace_s=30, checkpoint=False))
    run.until(lambda: len(run.ended()) == 2, "both to end")
    assert set(run.ended().values()) == {0}
    assert not run.committed


def flip_a_byte(run: Any, step: int) -> None:
    ref = next(ref for ref in run.committed if ref.step == step)
    manifest = decode_manifest(run.objects.get(Keys("job-1").manifest(ref.manifest_hash)))
    # An object of this save itself, so that older checkpoints stay sound.
    key = next(o.key for o in manifest.objects if manifest.save_id in o.key)
    path = next(path for path in (run.folder / "store").rglob("*") if key.split("/")[-1] in path.name)
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def test_a_flipped_byte_is_found_named_and_an_older_checkpoint_used(agent: Callable) -> None:
    straight = agent(2, "straight").run()
    run = agent(2, "damaged", fault={"rank": 0, "generation": 1, "step": 11, "do": "kill", "after": "committed-9"})
    run.start()
    run.until(lambda: run.ended(), "the fault")
    assert [ref.step for ref in run.committed] == [3, 6, 9]
    flip_a_byte(run, 9)
    result = run.finish()
    found = run.of_kind(CorruptionFound)
    assert len(found) == 1
    assert found[0].object_key.startswith("checkpoints/job-1/data/")
    assert len(found[0].chunk_hash) == 64
    assert min(line["step"] for line in run.steps() if line["generation"] == 2) == 7
    assert result["parameters"] == straight["parameters"]


@pytest.mark.parametrize("then", ["restart", "fail"])
def test_when_every_checkpoint_is_damaged(agent: Callable, then: str) -> None:
    fault = {"rank": 0, "generation": 1, "step": 5, "do": "kill", "after": "committed-3"}
    run = agent(2, "damaged", fault=fault, without_checkpoint=then)
    run.start()
    run.until(lambda: run.ended(), "the fault")
    flip_a_byte(run, 3)
    if then == "restart":
        result = run.finish()
        straight = agent(2, "straight").run()
        assert result["parameters"] == straight["parameters"]
        assert "ALL 1 CHECKPOINT(S) ARE DAMAGED" in run.logs()
    else:
        run.next_generation(set(run.ended()), "killed")
        run.until(lambda: len(run.ended()) == 2, "both to give up")
        assert {message.category for message in run.of_kind(WorkerFailed)} == {"corruption"}


def test_two_failures_one_of_them_while_the_generation_forms(agent: Callable) -> None:
    straight = agent(3, "straight").run()
    run = agent(3, "twice", fault={"rank": 2, "generation": 1, "step": 5, "do": "kill"})
    run.start()
    killed: list[int] = []

    def kill_a_newcomer(run: Any, name: str, message: object) -> None:
        # The replacement says hello to generation 2 and dies: its peers wait in the set-up.
        if run.generation == 2 and not killed and run.workers[name].incarnation == 2:
            killed.append(run.workers[name].pid)
            os.kill(run.workers[name].pid, signal.SIGKILL)

    run.on_message = kill_a_newcomer
    result = run.finish()
    assert killed
    assert result["generation"] == 3
    assert result["parameters"] == straight["parameters"]


def test_training_goes_on_while_the_agent_is_away_and_saves_are_said_again(agent: Callable) -> None:
    run = agent(2, step_s=0.02, steps=60, checkpoint_every=10, paced=False)
    run.start()
    run.until(lambda: run.committed, "the first checkpoint")
    run.vanish()
    before = max(line["step"] for line in run.steps())
    run.until(lambda: max(line["step"] for line in run.steps()) > before + 12, "steps without an agent")
    committed = len(run.committed)
    run.come_back()
    run.until(lambda: len(run.committed) > committed, "a checkpoint after the agent is back")
    assert run.finish()["step"] == 60
    assert run.committed[-1].step == 60
    assert {line["generation"] for line in run.steps()} == {1}


def test_what_a_healthy_run_says(agent: Callable) -> None:
    run = agent(2, step_s=0.15)
    run.run()
    plans = run.of_kind(PlanChosen)
    assert len(plans) == 1
    assert json.loads(plans[0].plan)["dp_replicate"] == 2
    samples = [step for batch in run.of_kind(Samples) for step in batch.steps]
    assert sorted(step.step for step in samples) == sorted([*range(1, 13), *range(1, 13)])
    assert all(step.total_steps == 12 and step.samples == 14 and step.tokens == 14 for step in samples)
    assert all(step.step_s > 0 and step.learning_rate and step.grad_norm for step in samples)
    recorded = run.of_kind(StepRecorded)
    assert [(record.why, record.step) for record in recorded] == [
        ("generation", 1), ("checkpoint", 3), ("checkpoint", 6), ("checkpoint", 9), ("end", 12),
    ]  # fmt: skip
    assert {"train", "setup"} <= {beat.phase for beat in run.of_kind(Heartbeat)}
    assert not run.of_kind(AwaitGeneration)
