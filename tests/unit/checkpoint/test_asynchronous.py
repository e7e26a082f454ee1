"""Saves beside training: what is saved is the state at the step boundary, and nothing that happens to a save goes
unnoticed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as stock_load

from everstep import Checkpointer
from everstep.catalog import JobCatalog, open_store, read_heartbeat
from everstep.catalog.progress import Heartbeat
from everstep.catalog.store.posix import PosixStore
from everstep.checkpoint.environment import JobEnvironment, Policy
from everstep.checkpoint.saving.gate import Gate
from everstep.errors import FencedError, StorageUnavailableError
from tests.support.restless import Restless, Run, copy_at_the_last_moment, copy_when

from .conftest import Job, folder_of, steps_of

Jobs = Callable[..., Job]


def heartbeat(root: Path) -> Heartbeat:
    found = read_heartbeat(open_store(str(root)), 1)
    assert isinstance(found, tuple)
    return found[0]


class Storage:
    """Shards are stored while it is open; `arrived` tells that one waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.arrived = threading.Semaphore(0)
        self.storing = 0
        self.most = 0
        put = PosixStore.put

        def slow(store: PosixStore, key: str, *content: Any) -> int:
            if not key.endswith(".distcp"):
                return put(store, key, *content)
            self.storing += 1
            self.most = max(self.most, self.storing)
            self.arrived.release()
            assert self.opened.wait(60)
            try:
                return put(store, key, *content)
            finally:
                self.storing -= 1

        monkeypatch.setattr(PosixStore, "put", slow)

    def open_soon(self) -> bool:
        threading.Timer(0.2, self.opened.set).start()
        return True


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    made = Storage(monkeypatch)
    yield made
    made.opened.set()


@pytest.fixture
def copied_last(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_at_the_last_moment(monkeypatch)


def stored(folder: Path, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state: dict[str, Any] = {name: torch.zeros_like(value) for name, value in like.items()}
    stock_load(state, storage_reader=FileSystemReader(folder), no_dist=True)
    return state


@pytest.mark.slow
@pytest.mark.usefixtures("copied_last")
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_each_checkpoint_is_the_state_at_its_step(tmp_path: Path) -> None:
    run = Run()
    live: dict[int, dict[str, torch.Tensor]] = {}
    with run.checkpointer(tmp_path, interval_steps=1) as checkpointer:
        for step in checkpointer.steps(30):
            run.step()
            live[step] = run.live()
        assert checkpointer._shards.plans.made == 1
    assert steps_of(tmp_path) == list(live)
    for step, wanted in live.items():
        found = stored(folder_of(tmp_path, step), wanted)
        differing = [name for name, value in wanted.items() if not torch.equal(found[name], value)]
        assert not differing, f"step {step}"
        assert step == 1 or not torch.equal(found["model.first.weight"], live[step - 1]["model.first.weight"])


@pytest.mark.usefixtures("copied_last")
def test_a_weight_that_is_changed_too_early_costs_this_save_alone(tmp_path: Path) -> None:
    run = Run()
    with run.checkpointer(tmp_path, interval_steps=2) as checkpointer:
        for step in checkpointer.steps(6):
            if step == 3:
                with torch.no_grad():
                    run.model.first.weight.clamp_(-0.01, 0.01)
            run.step()
    assert steps_of(tmp_path) == [4, 6]
    beat = heartbeat(tmp_path)
    assert beat.saves_failed == 1
    assert "model.first.weight was changed after its step had ended" in str(beat.last_save_error)


def test_steps_that_go_past_the_hooks_are_not_waited_for_and_not_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As those of a CUDA graph that is replayed: the copy comes when the next of them is over."""
    over = threading.Event()
    copy_when(monkeypatch, over)
    run = Run()
    run.step()  # what is captured steps once, and has its state
    live: dict[int, dict[str, torch.Tensor]] = {}
    with caplog.at_level("WARNING", "everstep"), run.checkpointer(tmp_path, interval_steps=1) as checkpointer:
        for step in checkpointer.steps(4):
            run.model.first.weight.data.add_(1.0)
            live[step] = run.live()
            if step > 1:
                over.set()
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    for step, wanted in live.items():
        found = stored(folder_of(tmp_path, step), wanted)
        assert torch.equal(found["model.first.weight"], wanted["model.first.weight"]), f"step {step}"
    assert caplog.text.count("no step of AdamW was seen since the save before") == 1


def test_what_is_frozen_may_be_changed_by_hand_though_an_optimizer_has_it(tmp_path: Path) -> None:
    run = Run()
    run.optimizer.add_param_group({"params": [run.model.target]})
    with run.checkpointer(tmp_path, interval_steps=1) as checkpointer:
        for _ in checkpointer.steps(6):
            run.step()
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_save_that_cannot_begin_holds_no_step_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    run = Run()

    def train() -> None:
        with run.checkpointer(tmp_path, interval_steps=1) as checkpointer:
            for _ in checkpointer.steps(3):
                run.step()
                monkeypatch.setattr("everstep.checkpoint.saving.runway.Flight", refuse)

    with pytest.raises(RuntimeError, match="can't start new thread"):
        train()
    run.step()


def test_beside_training_nobody_looks_at_the_model(tmp_path: Path) -> None:
    """In its forward pass FSDP puts other tensors in the places of the parameters."""
    threads: set[str] = set()

    class Watched(Restless):
        def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
            threads.add(threading.current_thread().name)
            return super().parameters(recurse)

    model = Watched()
    environment = JobEnvironment(root=str(tmp_path), heartbeat_seconds=60)
    with Checkpointer(model=model, interval_steps=2, environment=environment) as checkpointer:
        for _ in checkpointer.steps(3):
            model(torch.randn(8, 4))
    assert steps_of(tmp_path) == [2, 3]
    assert threads == {threading.current_thread().name}


def test_every_optimizer_waits_for_the_copy_in_whatever_thread_it_steps() -> None:
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [torch.optim.SGD([each], lr=1.0) for each in parameters]
    for each in parameters:
        each.grad = torch.ones(3)
    gate = Gate(optimizers)
    assert not any(gate.protects()(each) for each in parameters), "they have taken no step that it has seen"
    hold = gate.close()
    with ThreadPoolExecutor(2) as pool:
        steps = [pool.submit(each.step) for each in optimizers]
        try:
            assert not wait(steps, timeout=0.5).done
            assert all(each.tolist() == [1, 1, 1] for each in parameters)
        finally:
            hold.open()
        assert len(wait(steps, timeout=30).done) == 2
    assert all(each.tolist() == [0, 0, 0] for each in parameters)
    assert hold.waited > 0
    assert all(gate.protects()(each) for each in parameters)
    parameters[0].requires_grad_(False)
    assert [gate.protects()(each) for each in parameters] == [False, True]


def test_a_hook_that_was_there_first_changes_nothing_before_the_copy() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=1.0)

    def change(*_: Any) -> None:
        parameter.data.fill_(7)

    optimizer.register_step_pre_hook(change)
    gate = Gate([optimizer])
    hold = gate.close()
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(optimizer.step)
        try:
            assert not wait([step], timeout=0.5).done
            assert parameter.tolist() == [1, 1, 1]
        finally:
            hold.open()
        step.result(30)
    assert parameter.tolist() == [7, 7, 7]
    gate.remove()
    assert len(optimizer._optimizer_step_pre_hooks) == 1


def train(mine: Job, root: Path, in_step_3: Callable[[Checkpointer], bool]) -> None:
    """`in_step_3` is called when the save of step 2 waits for storage, and tells whether to leave the loop."""
    with mine.checkpointer(root, interval_steps=2) as checkpointer:
        for step in checkpointer.steps(9):
            mine.step()
            if step == 3 and in_step_3(checkpointer):
                break


def test_training_goes_on_while_storage_is_slow_and_the_next_save_waits(
    job: Jobs, tmp_path: Path, storage: Storage
) -> None:
    mine = job()
    seen: list[int] = []
    with mine.checkpointer(tmp_path, interval_steps=4) as checkpointer:
        for step in checkpointer.steps(12):
            mine.step()
            if step == 5:
                assert storage.arrived.acquire(timeout=60)
            if step == 8:
                seen = steps_of(tmp_path)
                threading.Timer(0.3, storage.opened.set).start()
    assert seen == []  # three steps were trained while the first save was not stored
    assert steps_of(tmp_path) == [4, 8, 12]
    assert storage.most == 1
    beat = heartbeat(tmp_path)
    assert beat.saves_waited >= 1
    assert (beat.saves_failed, beat.saving_step) == (0, None)
    assert beat.last_save is not None
    assert (beat.last_save.step, beat.last_save.bytes > 0) == (12, True)


def test_a_save_that_fails_beside_training_is_counted_and_the_next_one_stands(
    job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = PosixStore.put

    def flaky(store: PosixStore, key: str, *content: Any) -> int:
        if "step_000000000002-" in key:
            raise StorageUnavailableError("the disk is on fire")
        return put(store, key, *content)

    monkeypatch.setattr(PosixStore, "put", flaky)
    job().run(tmp_path, 6)
    assert steps_of(tmp_path) == [4, 6]
    beat = heartbeat(tmp_path)
    assert beat.saves_failed == 1
    assert "step 2: rank 0: the disk is on fire" in str(beat.last_save_error)


def test_a_run_that_fails_waits_for_its_save(job: Jobs, tmp_path: Path, storage: Storage) -> None:
    def fail(_: Checkpointer) -> bool:
        storage.open_soon()
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        train(job(), tmp_path, fail)
    assert steps_of(tmp_path) == [2]


def test_a_save_that_hangs_is_given_up_when_the_run_fails(
    job: Jobs, tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everstep.checkpoint.checkpointer.FAREWELL", 0.1)

    def fail(_: Checkpointer) -> bool:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        train(job(), tmp_path, fail)
    assert steps_of(tmp_path) == []
    storage.opened.set()


def test_leaving_the_loop_waits_for_the_save(job: Jobs, tmp_path: Path, storage: Storage) -> None:
    train(job(), tmp_path, lambda _: storage.open_soon())
    assert steps_of(tmp_path) == [2]


def test_sigterm_lets_the_save_under_way_land_and_saves_the_last_step(
    job: Jobs, tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERSTEP_TERMINATION_LOG", str(tmp_path / "termination"))

    def end(_: Checkpointer) -> bool:
        storage.open_soon()
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    with pytest.raises(SystemExit) as ended:
        train(job(), tmp_path, end)
    assert ended.value.code == 143
    assert steps_of(tmp_path) == [2, 4]
    assert "which was saved" in (tmp_path / "termination").read_text()


def test_leaving_the_loop_of_a_run_that_was_fenced_meanwhile(job: Jobs, tmp_path: Path, storage: Storage) -> None:
    def fence(checkpointer: Checkpointer) -> bool:
        JobCatalog(checkpointer.store).claim()
        return storage.open_soon()

    with pytest.raises(FencedError):
        train(job(), tmp_path, fence)
    assert steps_of(tmp_path) == []


def test_who_closes_by_hand_hears_of_the_fence(job: Jobs, tmp_path: Path, storage: Storage) -> None:
    mine = job()
    checkpointer = mine.checkpointer(tmp_path, interval_steps=2)
    for step in checkpointer.steps(9):
        mine.step()
        if step == 3:
            JobCatalog(checkpointer.store).claim()
            storage.open_soon()
            break
    with pytest.raises(FencedError):
        checkpointer.close()
    assert steps_of(tmp_path) == []


def test_a_directory_that_hangs_costs_saves_and_not_the_run(
    job: Jobs, tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("everstep.checkpoint.saving.uploading.SILENT", 0.05)
    monkeypatch.setattr("everstep.checkpoint.saving.uploading.PATIENCE", 0.2)
    mine = job()
    with mine.checkpointer(tmp_path, interval_steps=2) as checkpointer:
        for step in checkpointer.steps(8):
            mine.step()
            if step == 6:  # the save of step 2 hangs, and so that of step 4 was not begun
                assert storage.most == 1
                monkeypatch.setattr("everstep.checkpoint.saving.uploading.PATIENCE", 60)
                storage.opened.set()
                while storage.storing:
                    threading.Event().wait(0.01)
    assert steps_of(tmp_path)[-2:] == [6, 8]
    assert 2 not in steps_of(tmp_path)
    assert "are not written after 0 s; they are given up after 0 s" in caplog.text
    assert "step 2 was not saved: rank 0:" in caplog.text
    assert "not written within 0 s: does the file system hang?" in caplog.text
    assert "step 4 was not saved: rank 0:" in caplog.text
    assert "a write of an earlier save still hangs" in caplog.text


def test_a_transaction_waits_for_the_loops_save(job: Jobs, tmp_path: Path, storage: Storage) -> None:
    def begin(checkpointer: Checkpointer) -> bool:
        storage.open_soon()
        checkpointer.begin(3)
        assert steps_of(tmp_path) == [2]
        checkpointer.abort()
        return True

    train(job(), tmp_path, begin)
    assert steps_of(tmp_path) == [2]


def test_the_policy_decides(job: Jobs, tmp_path: Path) -> None:
    environment = JobEnvironment(root=str(tmp_path), policy=Policy.model_validate({"async": False}))
    mine = job()
    seen = []
    with mine.checkpointer(tmp_path, environment=environment, interval_steps=2) as checkpointer:
        for _ in checkpointer.steps(5):
            seen.append(steps_of(tmp_path)[-1:])
            mine.step()
        assert not checkpointer._beside.busy
    assert seen == [[], [], [2], [2], [4]]


def test_a_plan_is_made_again_where_the_state_has_changed(job: Jobs, tmp_path: Path) -> None:
    mine = job()
    made = []
    with mine.checkpointer(tmp_path, interval_steps=1) as checkpointer:
        for step in checkpointer.steps(8):
            if step == 3:
                mine.optimizer.param_groups[0]["lr"] = 1e-5  # another value
            if step == 5:
                new = torch.nn.Linear(1, 1)
                mine.model.append(new)
                mine.optimizer.add_param_group({"params": list(new.parameters())})
            if step == 7:
                mine.model[0] = mine.model[0].to(torch.float32)  # nothing changes
            mine.step()
            made.append(checkpointer._shards.plans.made)
    assert made == [0, 1, 1, 1, 1, 2, 2, 2]
    assert steps_of(tmp_path) == list(range(1, 9))
    catalog = JobCatalog(open_store(str(tmp_path)))
    assert all(catalog.manifest(entry) for entry in catalog.require().live())
