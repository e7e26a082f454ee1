"""One process that publishes, and a consumer of it, on a real directory."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from everstep.catalog import JobCatalog, Progress, Store, WeightSets, open_store
from everstep.catalog.store.posix import PosixStore
from everstep.checkpoint.session import Identity
from everstep.errors import (
    ArchitectureMismatchError,
    CheckpointCorruptError,
    FencedError,
    InvalidOperationError,
    StorageUnavailableError,
)
from everstep.weights import WeightsWatcher
from everstep.weights.publisher import WeightsPublisher


class Trainer:
    """A model whose weights all have the value of the step."""

    def __init__(self, store: Store, keep_last: int = 2, width: int = 8, **assets: bytes) -> None:
        self.model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width)).requires_grad_(False)
        claimed = JobCatalog(store).claim()
        self.publisher = WeightsPublisher(store, self.model, keep_last, {f"{k}.json": v for k, v in assets.items()})
        self.publisher.take(Identity(claimed.id, claimed.attempt, claimed.epoch, None))

    def publish(self, step: int) -> None:
        for value in self.model.state_dict().values():
            value.fill_(step)
        self.publisher.publish(step, Progress(step=step), {"loss": 1.0})


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "ns" / "job")


@pytest.fixture
def trainer(uri: str) -> Iterator[Trainer]:
    trainer = Trainer(open_store(uri), config=b'{"model_type": "tiny"}')
    yield trainer
    trainer.publisher.close(together=True)


def test_a_consumer_gets_each_new_set_once_and_loads_it(uri: str, trainer: Trainer) -> None:
    watcher = WeightsWatcher(uri)
    assert watcher.poll() is None
    for step in (1, 2):
        trainer.publish(step)
        trainer.publisher.settle()
        weights = watcher.poll()
        assert weights is not None
        assert weights.step == step
        assert watcher.poll() is None
        plain = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
        weights.load_into(plain)
        for name, value in plain.state_dict().items():
            assert torch.equal(value, trainer.model.state_dict()[name])


def test_the_copy_is_of_the_step_and_training_goes_on_meanwhile(
    uri: str, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage is slow; by the time that it has the bytes, the model is elsewhere."""
    put = PosixStore.put
    changed = threading.Event()

    def slow_put(self: PosixStore, key: str, body: Any, sums: Any = ()) -> int:
        if key.endswith(".safetensors"):
            assert changed.wait(30)
        return put(self, key, body, sums)

    monkeypatch.setattr(PosixStore, "put", slow_put)
    trainer.publish(7)
    for value in trainer.model.state_dict().values():
        value.fill_(-1)
    changed.set()
    trainer.publisher.settle()
    weights = WeightsWatcher(uri).poll()
    assert weights is not None
    assert {float(value.min()) for value in weights.tensors.values()} == {7.0}


def test_a_set_is_an_ordinary_folder_of_safetensors(uri: str, trainer: Trainer) -> None:
    trainer.publish(3)
    trainer.publisher.settle()
    (folder,) = Path(uri, "weights").iterdir()
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "manifest.json"}
    loaded = safetensors.torch.load_file(folder / "model.safetensors")
    assert {name: value.tolist() for name, value in loaded.items()} == {
        name: value.tolist() for name, value in trainer.model.state_dict().items()
    }
    assert (folder / "config.json").read_bytes() == b'{"model_type": "tiny"}'


def test_old_sets_go_and_two_stay_at_least(uri: str) -> None:
    trainer = Trainer(open_store(uri), keep_last=1)
    for step in range(1, 6):
        trainer.publish(step)
    trainer.publisher.close(together=True)
    assert [entry.step for entry in WeightSets(open_store(uri)).require().live()] == [4, 5]
    assert len(list(Path(uri, "weights").iterdir())) == 2


def test_a_slow_consumer_skips_and_one_that_waits_ends_when_it_was_told_to(uri: str, trainer: Trainer) -> None:
    for step in (1, 2, 3):
        trainer.publish(step)
    trainer.publisher.settle()
    watcher = WeightsWatcher(uri, poll_seconds=0.01)
    assert [step for step, _ in watcher.watch(seconds=0.05)] == [3]
    step, weights = next(iter(WeightsWatcher(uri)))
    assert (step, weights.step) == (3, 3)


def test_a_set_that_is_removed_while_it_is_read_is_followed_by_the_newest(
    uri: str, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.publish(1)
    trainer.publisher.settle()
    read = PosixStore.read_into
    overtaken = itertools.count()

    def late(self: PosixStore, key: str, start: int, into: memoryview) -> int:
        if next(overtaken) == 0:
            for step in (2, 3, 4):
                trainer.publish(step)
            trainer.publisher.settle()
        return read(self, key, start, into)

    monkeypatch.setattr(PosixStore, "read_into", late)
    weights = WeightsWatcher(uri).poll()
    assert weights is not None
    assert weights.step == 4


def test_damage_is_told_and_never_loaded(uri: str, trainer: Trainer) -> None:
    trainer.publish(1)
    trainer.publisher.settle()
    (path,) = Path(uri).rglob("model.safetensors")
    body = bytearray(path.read_bytes())
    body[-3] ^= 1
    path.write_bytes(body)
    watcher = WeightsWatcher(uri)
    with pytest.raises(CheckpointCorruptError, match=r"model\.safetensors: bytes 0 to"):
        watcher.poll()
    trainer.publish(2)
    trainer.publisher.settle()
    weights = watcher.poll()
    assert weights is not None
    assert weights.step == 2


def test_while_nothing_is_new_a_look_costs_one_request_without_a_body(
    uri: str, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.publish(1)
    trainer.publisher.settle()
    watcher = WeightsWatcher(uri)
    assert watcher.poll() is not None
    asked: list[str] = []
    for name in ("read_register", "get", "get_range", "read_into", "list"):
        call: Callable[..., Any] = getattr(PosixStore, name)

        def noting(self: PosixStore, *args: Any, call: Callable[..., Any] = call, name: str = name) -> Any:
            answer = call(self, *args)
            asked.append(f"{name} {args[0]} {getattr(answer, 'value', '')}")
            return answer

        monkeypatch.setattr(PosixStore, name, noting)
    assert watcher.poll() is None
    assert asked == ["read_register weights.json unchanged"]


def test_storage_that_fails_costs_a_set_and_not_the_run(
    uri: str, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def fail(self: PosixStore, key: str, body: Any, sums: Any = ()) -> int:
            raise StorageUnavailableError("on fire")

        patched.setattr(PosixStore, "put", fail)
        trainer.publish(1)
        with pytest.raises(StorageUnavailableError, match="on fire"):
            trainer.publisher.settle()
    trainer.publish(2)
    trainer.publisher.settle()
    assert [entry.step for entry in WeightSets(open_store(uri)).require().live()] == [2]


def test_a_fenced_trainer_publishes_nothing(uri: str) -> None:
    old = Trainer(open_store(uri))
    Trainer(open_store(uri)).publisher.close(together=True)
    old.publish(9)
    with pytest.raises(FencedError):
        old.publisher.settle()
    assert WeightsWatcher(uri).poll() is None


def test_weights_of_another_architecture_are_refused_whole(uri: str, trainer: Trainer) -> None:
    trainer.publish(1)
    trainer.publisher.settle()
    weights = WeightsWatcher(uri).poll()
    assert weights is not None
    other = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.BatchNorm1d(9))
    before = other.state_dict()["0.weight"].clone()
    with pytest.raises(ArchitectureMismatchError, match=r"0\.weight: \(8, 4\) published, \(9, 4\) here.*and 3 more"):
        weights.load_into(other)
    assert torch.equal(other.state_dict()["0.weight"], before)


def test_a_tensor_that_the_format_cannot_hold_is_refused_by_name(uri: str) -> None:
    trainer = Trainer(open_store(uri))
    trainer.model.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(InvalidOperationError, match="phase"):
        trainer.publish(1)
