"""What is kept from one save to the next is never a reason to save something else than what is there now.

Each test saves, changes something that a cached plan or a cached proof could hide, saves again, and compares what is
stored with what torch's own functions say at that moment.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

from everstep import Checkpointer
from everstep.checkpoint.environment import JobEnvironment
from everstep.checkpoint.saving.planning import flatten, outline
from everstep.checkpoint.state import plain, rng
from everstep.checkpoint.state.optimizers import capture, walk
from everstep.errors import InvalidOperationError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Net(nn.Module):
    """Tied and frozen weights, running statistics, a buffer that is kept and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.middle = nn.Linear(6, 6, bias=False)
        self.tied = nn.Linear(6, 6, bias=False)
        self.tied.weight = self.middle.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.kept: torch.Tensor
        self.register_buffer("kept", torch.zeros(3))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.kept += 1
        found: torch.Tensor = self.frozen(self.tied(self.middle(self.norm(self.first(inputs)))))
        return found.square().mean()


class Run:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: Any = Net()
        groups: list[dict[str, Any]] = [
            {"params": list(self.model.first.parameters()), "lr": 0.1},
            {"params": list(self.model.norm.parameters())},
        ]
        self.optimizer: Any = torch.optim.AdamW(groups)
        self.second: Any = torch.optim.SGD([self.model.middle.weight], lr=0.1, momentum=0.9)
        self.scheduler: Any = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.average: Any = {name: value.detach().clone() for name, value in self.model.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = self.average
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average = state

    def step(self) -> None:
        self.model(torch.randn(3, 4)).backward()
        for optimizer in (self.optimizer, self.second):
            optimizer.step()
            optimizer.zero_grad()
        self.scheduler.step()

    def checkpointer(self, root: Path) -> Checkpointer:
        return Checkpointer(
            model=self.model,
            optimizer=(self.optimizer, self.second),
            scheduler=self.scheduler,
            average=self,
            environment=JobEnvironment(root=str(root), heartbeat_seconds=60),
        )

    def now(self) -> dict[str, Any]:
        listed: Any = get_optimizer_state_dict(self.model, (self.optimizer, self.second))
        return {
            "model": dict(get_model_state_dict(self.model)),
            "optimizer": {"state": listed["state"], "param_groups": listed["param_groups"]},
            "average": dict(self.average),
            "scheduler": self.scheduler.state_dict(),
            "rng": rng.capture(),
        }


def stored(root: Path, location: str) -> dict[str, Any]:
    path = root / "as-torch-saves"
    dcp_to_torch_save(root / location, path)
    found: dict[str, Any] = torch.load(path, weights_only=False)
    common, own = plain.unpack(found["everstep"]["common"]), plain.unpack(found["everstep"]["rank"]["0"])
    average = {name.removeprefix("average/"): value for name, value in found["everstep"]["objects"].items()}
    return {
        "model": found["model"],
        "optimizer": {"state": found["optimizer"]["state"], "param_groups": found["optimizer"]["param_groups"]},
        "average": average,
        "scheduler": common["scheduler"],
        "rng": own["rng"],
    }


def check_same(found: Any, wanted: Any, where: str = "") -> None:
    if isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.dtype, where
        assert torch.equal(found, wanted), where
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key, value in wanted.items():
            check_same(found[key], value, f"{where}.{key}")
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted), where
        for number, value in enumerate(wanted):
            check_same(found[number], value, f"{where}.{number}")
    elif isinstance(wanted, np.ndarray):
        assert np.array_equal(found, wanted), where
    else:
        assert type(found) is type(wanted), where
        assert found == wanted, where


def a_step(run: Run) -> None:
    run.step()


def a_parameter_of_the_same_shape(run: Run) -> None:
    run.model.frozen.weight = nn.Parameter(torch.full((6, 6), 7.0), requires_grad=False)


def a_parameter_of_another_shape(run: Run) -> None:
    run.model.frozen.weight = nn.Parameter(torch.full((9, 6), 7.0))


def a_parameters_data(run: Run) -> None:
    run.model.first.weight.data = torch.full((6, 4), 3.0)


def a_parameters_type(run: Run) -> None:
    run.model.frozen.to(torch.bfloat16)


def a_parameters_size(run: Run) -> None:
    run.model.frozen.bias.data = torch.full((11,), 2.0)


def a_module(run: Run) -> None:
    run.model.frozen = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))


def a_module_fewer(run: Run) -> None:
    run.model.frozen = nn.Identity()


def weights_that_are_tied_no_more(run: Run) -> None:
    run.model.tied.weight = nn.Parameter(torch.ones(6, 6))


def weights_that_are_tied_now(run: Run) -> None:
    run.model.frozen.weight = run.model.middle.weight


def a_buffer(run: Run) -> None:
    run.model.kept = torch.full((5,), 4.0)
    run.model.norm.running_mean = torch.full((6,), 0.25)


def a_buffer_that_is_kept_no_more(run: Run) -> None:
    run.model._non_persistent_buffers_set = {"kept"}


def frozen_and_thawed(run: Run) -> None:
    run.model.first.weight.requires_grad_(False)
    run.model.frozen.requires_grad_(True)


def a_group_more(run: Run) -> None:
    run.optimizer.add_param_group({"params": [run.model.frozen.weight], "lr": 0.5})


def a_parameter_in_another_group(run: Run) -> None:
    first, second = run.optimizer.param_groups
    second["params"].append(first["params"].pop())


def an_option(run: Run) -> None:
    run.optimizer.param_groups[0]["lr"] = 0.75
    run.optimizer.param_groups[0]["betas"] = (0.5, 0.75)
    run.optimizer.param_groups[1]["mine"] = "of another kind"


def an_option_of_another_type(run: Run) -> None:
    run.optimizer.param_groups[0]["weight_decay"] = 1
    run.optimizer.param_groups[1]["weight_decay"] = True


def an_option_in_a_tensor(run: Run) -> None:
    run.optimizer.param_groups[0]["lr"] = torch.tensor(0.5)


def options_in_tensors_that_change(run: Run) -> None:
    an_option_in_a_tensor(run)
    run.optimizer.param_groups[0]["betas"] = (torch.tensor(0.5), 0.75)
    run.step()
    run.optimizer.param_groups[0]["betas"][0].fill_(0.625)


def state_that_is_new(run: Run) -> None:
    run.optimizer.state[run.model.first.weight]["trace"] = torch.ones(2)
    run.optimizer.state[run.model.first.bias]["counts"] = {"seen": 3, "of": [1, 2]}


def state_that_is_replaced(run: Run) -> None:
    run.optimizer.state[run.model.first.weight]["exp_avg"] = torch.full((6, 4), 5.0)


def state_that_is_gone(run: Run) -> None:
    del run.optimizer.state[run.model.first.bias]


def the_scheduler(run: Run) -> None:
    run.scheduler.last_epoch = 17


def random_numbers(run: Run) -> None:
    torch.rand(3), np.random.rand(3), random.random()


def an_average(run: Run) -> None:
    run.average["first.weight"].lerp_(torch.ones(6, 4), 0.5)
    run.average["kept"] = torch.ones(2)


def a_hook_on_the_models_state(run: Run) -> None:
    def double(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        state[f"{prefix}kept"] = state[f"{prefix}kept"] * 2

    run.model.register_state_dict_post_hook(double)


def a_hook_before_the_models_state(run: Run) -> None:
    run.model.register_state_dict_pre_hook(lambda model, *_: model.kept.fill_(33))


def a_hook_on_the_optimizers_state(run: Run) -> None:
    def rename(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        groups = [{**group, "hooked": 1} for group in state["param_groups"]]
        return {"state": state["state"], "param_groups": groups}

    run.optimizer.register_state_dict_post_hook(rename)


def a_method_of_its_own(run: Run) -> None:
    states = run.model.frozen.state_dict
    run.model.frozen.state_dict = lambda *args, **named: states(*args, **named)
    save = run.model.norm._save_to_state_dict

    def without_counts(destination: dict[str, Any], prefix: str, keep: bool) -> None:
        save(destination, prefix, keep)
        del destination[f"{prefix}num_batches_tracked"]

    run.model.norm._save_to_state_dict = without_counts


def extra_state(run: Run) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> torch.Tensor:
            return torch.tensor([1.0, 2.0])

        def set_extra_state(self, state: torch.Tensor) -> None:
            pass

    run.model.frozen = Extra(6, 6)


def a_wrapper(run: Run) -> None:
    run.model.frozen = checkpoint_wrapper(run.model.frozen)


def a_compiled_module(run: Run) -> None:
    run.model.frozen = torch.compile(run.model.frozen)


CHANGES: list[Any] = [
    a_step,
    a_parameter_of_the_same_shape,
    a_parameter_of_another_shape,
    a_parameters_data,
    a_parameters_type,
    a_parameters_size,
    a_module,
    a_module_fewer,
    weights_that_are_tied_no_more,
    weights_that_are_tied_now,
    a_buffer,
    a_buffer_that_is_kept_no_more,
    frozen_and_thawed,
    a_group_more,
    a_parameter_in_another_group,
    an_option,
    an_option_of_another_type,
    an_option_in_a_tensor,
    options_in_tensors_that_change,
    state_that_is_new,
    state_that_is_replaced,
    state_that_is_gone,
    the_scheduler,
    random_numbers,
    an_average,
    a_hook_on_the_models_state,
    a_hook_before_the_models_state,
    a_hook_on_the_optimizers_state,
    a_method_of_its_own,
    extra_state,
    a_wrapper,
]


@pytest.mark.parametrize(
    "change",
    [*CHANGES, pytest.param(a_compiled_module, marks=pytest.mark.slow)],
    ids=lambda change: change.__name__,
)
def test_what_has_changed_is_what_is_saved(tmp_path: Path, change: Callable[[Run], None]) -> None:
    run = Run()
    run.step()
    with run.checkpointer(tmp_path) as checkpointer:
        save(checkpointer, 1)
        change(run)
        for step in (2, 3):  # the second of them may find a plan for the new state
            check_same(stored(tmp_path, save(checkpointer, step)), run.now())


def test_state_that_appears_at_the_first_step(tmp_path: Path) -> None:
    run = Run()
    with run.checkpointer(tmp_path) as checkpointer:
        save(checkpointer, 1)
        assert not run.optimizer.state
        for step in (2, 3):
            run.step()
            check_same(stored(tmp_path, save(checkpointer, step)), run.now())


def save(checkpointer: Checkpointer, step: int) -> str:
    checkpointer.begin(step)
    checkpointer.save_state()
    return checkpointer.commit().location


def test_torch_is_asked_once_and_again_where_something_is_new() -> None:
    run = Run()
    run.step()
    found = walk(run.model, (run.optimizer, run.second))

    def look() -> int:
        before = found.asked
        model = found.model()
        assert list(model) == list(get_model_state_dict(run.model))
        assert model["first.weight"] is run.model.first.weight
        listed = [found.optimizer(number) for number in range(2)]
        assert listed[0]["state"]["first.weight"] is run.optimizer.state[run.model.first.weight]
        return found.asked - before

    assert look() == 3
    assert look() == 0
    run.step()
    assert look() == 0
    a_parameter_of_another_shape(run)
    assert look() == 0, "its name is the same, and so is torch's way to it"
    a_group_more(run)
    assert look() == 1
    state_that_is_new(run)
    assert look() == 1
    weights_that_are_tied_no_more(run)
    assert look() == 3
    assert look() == 0


@pytest.mark.slow
def test_wrapped_modules_are_read_without_torchs_help() -> None:
    model: Any = Run().model
    model.first = torch.compile(checkpoint_wrapper(model.first))
    model.frozen = checkpoint_wrapper(model.frozen)
    whole: Any = torch.compile(model)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9)
    for parameter in whole.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    found = walk(whole, (optimizer,))
    for _ in range(2):
        names = found.model()
        check_same(dict(names), dict(get_model_state_dict(whole)))
        check_same(found.optimizer(0), get_optimizer_state_dict(whole, optimizer))
    assert "first.weight" in names
    assert found.asked == 2


def test_items_are_named_as_dcp_names_them() -> None:
    tensor = torch.ones(1)
    state: dict[str, Any] = {
        "a": {"b": tensor, 3: {"c": 1, "d": [1, (2, 3)]}, "empty": {}, "e.f": tensor},
        "groups": [{"lr": 0.1, "params": ["x", "y"]}, {"lr": tensor}],
        "list": [tensor, [tensor, 2]],
        "tuple": (tensor, 1),
        "none": None,
    }
    assert flatten(state) == flatten_state_dict(state)
    with pytest.raises(InvalidOperationError, match=r"two items of the state are named a\.b\.c"):
        flatten({"a": {"b": {"c": tensor}, "b.c": tensor}})


def test_nothing_of_a_state_outlives_its_outline() -> None:
    """What an object hands out for one save, such as a copy of its weights, is freed with it, not some time later."""
    tensor = torch.ones(3)
    seen = weakref.ref(tensor)
    found = outline({"a": {"b": tensor}, "c": [1]}, rank=0)
    gc.disable()
    try:
        del tensor, found
        assert seen() is None
    finally:
        gc.enable()


def test_an_optimizer_without_state_takes_no_step_for_a_save() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: pytest.fail("no step of the run's own"))
    versions = [each._version for each in model.parameters()]
    for _ in range(3):
        found = capture(walk(model, [optimizer]), [optimizer])
        assert found["state"] == {}
        assert [group["params"] for group in found["param_groups"]] == [["weight", "bias"]]
    assert [each._version for each in model.parameters()] == versions
    assert not optimizer.state
