"""What only several ranks can get wrong, checked by the ranks themselves. usage: torchrun ranks.py, with EVERSTEP_ROOT.

Ends with "all ranks agree" from each rank, or with the traceback of the first check that failed.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torchdata.stateful_dataloader import StatefulDataLoader

from everstep import Checkpointer, CheckpointError, InvalidOperationError
from everstep.catalog import JobCatalog, WeightSets
from everstep.catalog.store.posix import PosixStore
from everstep.checkpoint import gang, transactions
from everstep.checkpoint.gang import Gang
from everstep.checkpoint.restoring import model_weights
from everstep.checkpoint.restoring.model_weights import load_weights
from everstep.errors import SavesFailedError, StorageRefusedError, StorageUnavailableError
from everstep.weights.publisher import WeightsPublisher
from tests.support.restless import copy_at_the_last_moment


class Wide(torch.optim.Optimizer):
    """Keeps its state in a higher precision than the parameters have."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": np.float64(0.01)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    if not self.state[parameter]:
                        self.state[parameter] = {"sum": torch.zeros_like(parameter, dtype=torch.float32), "seen": 0}
                    state = self.state[parameter]
                    state["seen"] += 1
                    state["sum"].mul_(0.9).add_(parameter.grad.float())
                    parameter.add_(state["sum"].to(parameter.dtype), alpha=-float(group["lr"]))


class Position:
    """Data that every rank has its own of."""

    def __init__(self, broken: bool = False) -> None:
        self.at = dist.get_rank() * 1000
        self.broken = broken

    def get_state(self) -> dict[str, int]:
        if self.broken:
            raise RuntimeError("the reader is gone")
        return {"at": self.at}

    def set_state(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class Net(torch.nn.Module):
    """Running statistics that FSDP does not share, dropout, two types of parameters, fewer rows than ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 6)
        self.norm = torch.nn.BatchNorm1d(6)
        self.last = torch.nn.Linear(6, 1)
        self.narrow = torch.nn.Linear(6, 2).bfloat16()
        self.scalar: torch.Tensor
        self.register_buffer("scalar", torch.tensor(0.5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.first(inputs))
        self.scalar += inputs.mean()
        dropped = torch.nn.functional.dropout(hidden, 0.3, self.training)
        loss: torch.Tensor = self.last(dropped).square().mean() + self.narrow(hidden.bfloat16()).float().mean()
        return loss


class Run:
    """Everything that a rank can have of its own, made as a new process makes it."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = Net()
        fully_shard(self.model.narrow)
        fully_shard(self.model)
        plain = [*self.model.norm.parameters(), *self.model.last.parameters()]
        self.optimizers = (
            torch.optim.AdamW(self.model.first.parameters(), lr=0.01),
            torch.optim.SGD(plain, lr=0.01),
            Wide(self.model.narrow.parameters()),
        )
        self.average = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.generator = torch.Generator().manual_seed(seed + dist.get_rank())
        self.data = Position()
        torch.manual_seed(seed + 10 * dist.get_rank())
        np.random.seed(dist.get_rank())
        random.seed(dist.get_rank())

    def state_dict(self) -> dict[str, Any]:
        return self.average

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average = state

    def step(self) -> list[float]:
        noise = torch.randn(5, 4, generator=self.generator) + self.data.at
        self.data.at += 1
        inputs = noise + torch.randn(5, 4) + random.random() + np.random.random()
        loss: torch.Tensor = self.model(inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.first.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for name, value in self.model.named_parameters():
            self.average[name].lerp_(value.detach(), 0.1)
        average: Any = self.average["first.weight"]
        running: Any = self.model.norm.running_mean
        return [
            float(loss.detach()),
            float(running.sum()),
            float(self.model.scalar),
            float(average.full_tensor().detach().sum()),
        ]

    def checkpointer(self, **options: Any) -> Checkpointer:
        return Checkpointer(
            model=self.model, optimizer=self.optimizers, data=self.data, average=self, generator=self.generator,
            absent=None, **options,
        )  # fmt: skip

    def live(self) -> dict[str, torch.Tensor]:
        """What FSDP shards, by the names under which it is saved."""
        found: dict[str, torch.Tensor] = dict(get_model_state_dict(self.model))  # type: ignore[arg-type]
        state: dict[str, Any] = get_optimizer_state_dict(self.model, self.optimizers)["state"]  # type: ignore[assignment]
        found = {f"model.{name}": value for name, value in found.items() if isinstance(value, DTensor)}
        found |= {
            f"optimizer.state.{name}.{key}": value
            for name, values in state.items()
            for key, value in values.items()
            if isinstance(value, DTensor)
        }
        found |= {f"everstep.objects.average/{name}": value for name, value in self.average.items()}
        return {name: value.detach().clone() for name, value in found.items()}


def refused(action: Callable[[], Any], kind: type[CheckpointError], text: str) -> None:
    with pytest.raises(kind, match=text):
        action()


def saved_beside_training() -> None:
    """Each checkpoint is the state at the end of its step, and a weight that is changed too early costs one save."""
    copy_at_the_last_moment(pytest.MonkeyPatch())
    root = Path(os.environ["EVERSTEP_ROOT"] + "-beside")
    run = Run(seed=3)
    live: dict[int, dict[str, torch.Tensor]] = {}
    with run.checkpointer(root=str(root), interval_steps=1) as checkpointer:
        for step in checkpointer.steps(12):
            if step == 7 and dist.get_rank() == 1:
                with torch.no_grad():
                    run.model.first.weight.clamp_(-0.01, 0.01)
            run.step()
            live[step] = run.live()
        assert checkpointer._shards.plans.made == 1
        assert checkpointer._failures.total == 1
    entries = {entry.step: entry.location for entry in JobCatalog(checkpointer.store).require().live()}
    assert sorted(entries) == [step for step in live if step != 6]
    for step, location in entries.items():
        found: dict[str, Any] = {name: torch.zeros_like(value) for name, value in live[step].items()}
        load(found, storage_reader=FileSystemReader(root / location))
        assert not [name for name, value in live[step].items() if not same(found[name], value)], f"step {step}"


def one_rank_has_something_new() -> None:
    """Each takes it that for the others all is as it was, until it hears of what is not."""
    root = os.environ["EVERSTEP_ROOT"] + "-new"
    run = Run(seed=9)
    with run.checkpointer(root=root) as checkpointer:

        def save(step: int) -> int:
            run.step()
            checkpointer.begin(step)
            checkpointer.save_state()
            checkpointer.commit()
            states = copy.deepcopy([value for optimizer in run.optimizers for value in optimizer.state.values()])
            again = Run(seed=10)
            again.checkpointer(root=root).load(step)
            check_states(again, states)
            assert again.data.at == run.data.at, step
            assert all(same(value, again.average[name]) for name, value in run.average.items()), step
            return checkpointer._shards.plans.made

        assert [save(1), save(2)] == [1, 1]
        run.data.at = 7  # which is each rank's own no more
        save(3)
        run.data.at += dist.get_rank()
        made = save(4)
        if dist.get_rank() == 1:
            run.optimizers[2].state[run.model.narrow.weight]["note"] = "of this rank alone"
        if dist.get_rank() == 0:
            run.optimizers[2].param_groups[0]["lr"] = np.float64(0.5)
        run.step()
        checkpointer.begin(5)
        checkpointer.save_state()
        checkpointer.commit()
        assert checkpointer._shards.plans.made == made + 1
        rank = dist.get_rank()
        refused(lambda: checkpointer._launch(6 + rank, 0.0), InvalidOperationError, "the ranks are at 6, 7")
        run.optimizers[2].state[run.model.narrow.weight].pop("note", None)
        assert save(8) == made + 2


def check_states(run: Run, wanted: list[dict[str, Any]]) -> None:
    found = [value for optimizer in run.optimizers for value in optimizer.state.values()]
    assert len(found) == len(wanted)
    for theirs, ours in zip(wanted, found, strict=True):
        assert theirs.keys() == ours.keys()
        for key, value in theirs.items():
            local = [each.to_local() if isinstance(each, DTensor) else each for each in (value, ours[key])]
            assert local[0].dtype == local[1].dtype if isinstance(value, torch.Tensor) else True
            assert torch.equal(*local) if isinstance(value, torch.Tensor) else local[0] == local[1], key


def frozen_when_it_is_loaded(states: list[dict[str, Any]]) -> None:
    """A sharded parameter that is not trained just now has the state that it was saved with."""
    run = Run(seed=4)
    run.model.first.requires_grad_(False)
    run.checkpointer().load(4)
    check_states(run, states)


def one_rank_cannot_open_the_store() -> None:
    def refuse(uri: str) -> Any:
        raise StorageRefusedError(f"{uri} is not mounted here")

    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            patch.setattr(model_weights, "open_store", refuse)
            patch.setattr(transactions, "open_store", refuse)
        model, root = Run(seed=6).model, os.environ["EVERSTEP_ROOT"]
        refused(lambda: load_weights(model, root), StorageRefusedError, "rank 1: .* is not mounted here")
        refused(lambda: Checkpointer(model=model), StorageRefusedError, "rank 1: .* is not mounted here")


def one_rank_reads_other_bytes() -> None:
    """It fails the attempt and costs no checkpoint: rank 0 sees that they are good."""
    read = PosixStore.read_into

    def flipped(store: PosixStore, key: str, start: int, into: memoryview) -> int:
        count = read(store, key, start, into)
        into[0] ^= 1
        return count

    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            patch.setattr(PosixStore, "read_into", flipped)
        checkpointer = Run(seed=7).checkpointer()
        refused(checkpointer.load_latest, StorageUnavailableError, "rank 1: .* Rank 0 .* finds no damage")
    assert [entry.step for entry in JobCatalog(checkpointer.store).require().live()] == [4]


def one_rank_has_no_room_for_weights() -> None:
    """All learn of it before a tensor is gathered, and the next set is published."""

    def refuse(*_: Any) -> None:
        raise MemoryError("no room")

    with Run(seed=8).checkpointer(root=os.environ["EVERSTEP_ROOT"] + "-weights") as checkpointer:
        for step in checkpointer.steps(2):
            with pytest.MonkeyPatch.context() as patch:
                if step == 1 and dist.get_rank() == 1:
                    patch.setattr(WeightsPublisher, "_make_room", refuse)
                checkpointer.publish_weights()
    assert [entry.step for entry in WeightSets(checkpointer.store).require().live()] == [2]


def a_loader_that_does_not_say_whose_its_state_is_is_refused() -> None:
    loader: Any = StatefulDataLoader(list(range(8)))
    refused(lambda: Checkpointer(model=torch.nn.Linear(1, 1), data=loader), InvalidOperationError, "PerRank")


def stages_of_a_pipeline_are_refused(root: Path) -> None:
    rank = dist.get_rank()
    stage = torch.nn.ModuleDict({f"layer{rank}": torch.nn.Linear(3, 3)})
    with Checkpointer(model=stage, root=str(root)) as checkpointer:
        refused(lambda: checkpointer.save(1), InvalidOperationError, "as the stages of a pipeline have")


def saves_that_fail_for_too_long_end_all_ranks_at_one_step() -> None:
    """Though they hear of it at different steps, and each by its own clock."""
    run, steps = Run(seed=11), []
    put, rank = PosixStore.put, dist.get_rank()

    def refuse(self: PosixStore, key: str, *rest: Any) -> int:
        if key.endswith("__1_0.distcp"):
            raise StorageUnavailableError("no way from this node")
        return put(self, key, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PosixStore, "put", refuse)
        checkpointer = run.checkpointer(
            root=os.environ["EVERSTEP_ROOT"] + "-unsaved",
            interval_steps=2,
            save_timeout_seconds=1e-6 if rank == 0 else 9e9,
        )

        def train() -> None:
            with checkpointer:
                for step in checkpointer.steps(40):
                    steps.append(step)
                    run.step()

        refused(train, SavesFailedError, "step 2 was not saved: rank 1: no way from this node")
    told: list[Any] = [None, None]
    dist.all_gather_object(told, steps)
    assert told[0] == told[1]
    assert len(steps) < 10


def what_one_rank_tells_is_far_more() -> None:
    """Not as much room for each as for the largest: then they tell one after the other."""
    whole, rank = Gang(), dist.get_rank()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gang, "_PADDED", 10_000)
        told = whole.all_gather(b"x" * (300_000 if rank == 1 else 3))
    assert [len(each) for each in told] == [3, 300_000]
    assert whole.all_gather(b"y" * (300_000 if rank == 0 else 3)) == [b"y" * 300_000, b"yyy"]
    whole.close()


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    mine = [each.to_local() if isinstance(each, DTensor) else each for each in (one, other)]
    return torch.equal(*mine)


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    first = Run(seed=1)

    checkpointer = first.checkpointer()
    assert checkpointer.load_latest() is None
    for _ in range(3):
        first.step()

    refused(lambda: checkpointer.report(total=first.model.first.weight.sum()), InvalidOperationError, "full_tensor")
    refused(lambda: checkpointer.begin(3 + rank), InvalidOperationError, "the ranks are at 3, 4")

    checkpointer.begin(3)
    first.data.broken = rank == 1
    refused(
        checkpointer.save_state,
        CheckpointError,
        r"rank 1: data: Position.get_state\(\) raised RuntimeError: the reader is gone",
    )
    first.data.broken = False

    checkpointer.begin(4)
    checkpointer.report(tokens=10 + rank)
    checkpointer.save_state()
    checkpointer.commit()
    states = copy.deepcopy([value for optimizer in first.optimizers for value in optimizer.state.values()])
    wanted = [first.step() for _ in range(3)]

    again = Run(seed=2)
    again.step()  # a warm-up leaves gradients and state behind
    again.model(torch.ones(2, 4)).backward()
    found = again.checkpointer().load_latest()
    assert found is not None
    assert found.step == 4
    check_states(again, states)
    assert again.optimizers[2].param_groups[0]["lr"] == 0.01
    for optimizer in again.optimizers:
        optimizer.zero_grad()
    assert [again.step() for _ in range(3)] == wanted
    frozen_when_it_is_loaded(states)
    one_rank_cannot_open_the_store()
    one_rank_reads_other_bytes()
    one_rank_has_no_room_for_weights()
    saved_beside_training()
    one_rank_has_something_new()
    what_one_rank_tells_is_far_more()
    saves_that_fail_for_too_long_end_all_ranks_at_one_step()
    a_loader_that_does_not_say_whose_its_state_is_is_refused()
    stages_of_a_pipeline_are_refused(Path(os.environ["EVERSTEP_ROOT"]).with_name("pipeline"))
    print("all ranks agree", flush=True)
    dist.barrier()
    dist.destroy_process_group()


main()
