"""Odd but ordinary state: what a run has of it comes back bit for bit, or is refused when it is saved."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from everstep import Checkpointer
from everstep.checkpoint.checkpointer import Committed
from everstep.checkpoint.environment import JobEnvironment
from everstep.errors import InvalidOperationError

Optimizers = list[torch.optim.Optimizer]


def checkpointer(root: Path, **objects: Any) -> Checkpointer:
    return Checkpointer(environment=JobEnvironment(root=str(root), heartbeat_seconds=60), **objects)


def save(root: Path, step: int = 1, **objects: Any) -> Committed:
    with checkpointer(root, **objects) as found:
        found.begin(step)
        found.save_state()
        return found.commit()


def net(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))


def train(model: torch.nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 4)).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def test_a_learning_rate_from_numpy(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=np.float64(0.25))
    train(model, optimizer)
    save(tmp_path, model=model, optimizer=optimizer)
    fresh = net(1)
    again = torch.optim.AdamW(fresh.parameters())
    checkpointer(tmp_path, model=fresh, optimizer=again).load(1)
    assert again.param_groups[0]["lr"] == 0.25


def test_a_learning_rate_in_a_tensor_stays_that_tensor(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.001))
    train(model, optimizer)
    optimizer.param_groups[0]["lr"].fill_(0.5)
    save(tmp_path, model=model, optimizer=optimizer)
    fresh = net(1)
    rate = torch.tensor(0.001)
    again = torch.optim.AdamW(fresh.parameters(), lr=rate)
    checkpointer(tmp_path, model=fresh, optimizer=again).load(1)
    assert again.param_groups[0]["lr"] is rate
    assert rate == 0.5


@pytest.mark.parametrize("kind", ["stateless", "has not stepped"])
def test_an_optimizer_without_state_beside_one_that_has(tmp_path: Path, kind: str) -> None:
    def optimizers(model: torch.nn.Sequential) -> Optimizers:
        momentum = 0.0 if kind == "stateless" else 0.9
        return [
            torch.optim.AdamW(model[0].parameters(), lr=0.01),
            torch.optim.SGD(model[1].parameters(), lr=0.01, momentum=momentum),
        ]

    model = net()
    mine = optimizers(model)
    train(model, *(mine if kind == "stateless" else mine[:1]))
    mine[1].param_groups[0]["lr"] = 0.125
    model.zero_grad()
    save(tmp_path, model=model, optimizer=mine)
    assert not mine[1].state
    fresh = net(1)
    theirs = optimizers(fresh)
    checkpointer(tmp_path, model=fresh, optimizer=theirs).load(1)
    assert theirs[1].param_groups[0]["lr"] == 0.125
    for _ in range(3):
        train(model, *mine)
        train(fresh, *theirs)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_gradients_that_wait_do_not_hide_the_optimizers_state(tmp_path: Path) -> None:
    model: Any = net()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    save(tmp_path, model=model, optimizer=optimizer)
    fresh: Any = net(1)
    again = torch.optim.AdamW(fresh.parameters())
    fresh(torch.ones(1, 4)).sum().backward()
    waiting = fresh[0].weight.grad
    checkpointer(tmp_path, model=fresh, optimizer=again).load(1)
    assert fresh[0].weight.grad is waiting
    assert torch.equal(again.state[fresh[0].weight]["exp_avg_sq"], optimizer.state[model[0].weight]["exp_avg_sq"])


def test_frozen_and_unused_parameters_and_groups_of_their_own(tmp_path: Path) -> None:
    def make(seed: int) -> tuple[torch.nn.Sequential, torch.optim.Optimizer]:
        model = net(seed)
        model.register_parameter("unused", torch.nn.Parameter(torch.full((3,), float(seed))))
        model[0].bias.requires_grad_(False)
        unused: Any = model.unused
        groups: list[dict[str, Any]] = [
            {"params": list(model[0].parameters()), "lr": 0.5},
            {"params": [*model[1].parameters(), unused]},
        ]
        return model, torch.optim.AdamW(groups, lr=0.1 * (seed + 1))

    def forward(model: torch.nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
        model[1](model[0](torch.ones(2, 4))).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = make(0)
    forward(model, optimizer)
    save(tmp_path, model=model, optimizer=optimizer)
    fresh, again = make(5)
    checkpointer(tmp_path, model=fresh, optimizer=again).load(1)
    assert [group["lr"] for group in again.param_groups] == [0.5, 0.1]
    assert len(again.state) == len(optimizer.state) == 3
    forward(model, optimizer)
    forward(fresh, again)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize("when", ["fresh", "has stepped"])
@pytest.mark.parametrize("kind", ["adamw", "momentum", "adafactor"])
def test_what_is_frozen_keeps_its_state_until_it_is_trained_again(tmp_path: Path, kind: str, when: str) -> None:
    """Layers are frozen and thawed in the course of a run: a resumed one has no other momentum than one that was not
    interrupted."""

    def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
        if kind == "adafactor":
            return torch.optim.Adafactor(model.parameters(), lr=0.1)
        if kind == "momentum":
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return torch.optim.AdamW(model.parameters(), lr=0.1)

    model = net()
    optimizer = optimizer_of(model)
    train(model, optimizer)
    train(model, optimizer)
    model[0].requires_grad_(False)
    train(model, optimizer)
    save(tmp_path, model=model, optimizer=optimizer)
    fresh = net(1)
    fresh[0].requires_grad_(False)
    again = optimizer_of(fresh)
    if when == "has stepped":
        train(fresh, again)
    checkpointer(tmp_path, model=fresh, optimizer=again).load(1)
    assert not fresh[0].weight.requires_grad
    assert fresh[0].weight.grad is None
    assert len(again.state) == len(optimizer.state) == 4
    for each in (model, fresh):
        each[0].requires_grad_(True)
    for _ in range(2):
        train(model, optimizer)
        train(fresh, again)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_state_that_no_optimizer_takes_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    save(tmp_path, model=model, optimizer=optimizer)
    fresh = net(1)
    with caplog.at_level("WARNING", "everstep"):
        checkpointer(tmp_path, model=fresh, optimizer=torch.optim.AdamW(fresh[1].parameters())).load(1)
    assert "the state of 0.weight and 1 more is left in the checkpoint: no optimizer has the parameter" in caplog.text


def test_tied_weights(tmp_path: Path) -> None:
    def tied(seed: int) -> Any:
        model: Any = net(seed)
        twin = torch.nn.Linear(4, 8)
        twin.weight = model[0].weight
        model.add_module("twin", twin)
        return model

    model = tied(0)
    optimizer = torch.optim.AdamW(model.parameters())
    (model[1](model[0](torch.ones(1, 4))).mean() + model.twin(torch.ones(1, 4)).mean()).backward()
    optimizer.step()
    save(tmp_path, model=model, optimizer=optimizer)
    fresh = tied(1)
    again = torch.optim.AdamW(fresh.parameters())
    checkpointer(tmp_path, model=fresh, optimizer=again).load(1)
    assert fresh.twin.weight is fresh[0].weight
    assert torch.equal(fresh[0].weight, model[0].weight)
    assert len(again.state) == len(optimizer.state)


def test_dtypes_and_shapes(tmp_path: Path) -> None:
    kinds = (
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.complex64,
        torch.float16,
        torch.int64,
        torch.bool,
        torch.float64,
    )

    def make(value: float) -> torch.nn.Module:
        module = torch.nn.Module()
        for number, dtype in enumerate(kinds):
            module.register_buffer(f"b{number}", torch.full((3, 2), value).to(dtype))
        module.register_buffer("large", torch.tensor(int(value) << 40))
        module.register_buffer("scalar", torch.tensor(value))
        module.register_buffer("empty", torch.empty(0, 4))
        module.register_parameter("strided", torch.nn.Parameter(torch.arange(12.0).mul(value).reshape(3, 4).t()))
        return module

    model, fresh = make(1.0), make(0.0)
    save(tmp_path, model=model)
    checkpointer(tmp_path, model=fresh).load(1)
    for name, value in model.state_dict().items():
        found = fresh.state_dict()[name]
        assert found.dtype == value.dtype
        assert found.tolist() == value.tolist() if value.dtype != torch.float8_e4m3fn else True
        assert torch.equal(found.float(), value.float()) if value.dtype == torch.float8_e4m3fn else True


def test_another_optimizer_is_refused_and_not_begun_afresh(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer)
    save(tmp_path, model=model, optimizer=optimizer)
    others: list[tuple[Any, str]] = [
        (lambda p: torch.optim.AdamW(p), r"no 'step' for 0\.weight"),
        (lambda p: torch.optim.SGD(p, lr=0.1), r"has state for 0\.weight, but this SGD keeps none"),
    ]
    for make, message in others:
        fresh = net()
        with pytest.raises(InvalidOperationError, match=message):
            checkpointer(tmp_path, model=fresh, optimizer=make(fresh.parameters())).load(1)
    with pytest.raises(InvalidOperationError, match="LBFGS"):
        checkpointer(tmp_path, model=model, optimizer=torch.optim.LBFGS(model.parameters()))


def test_schedulers_keep_their_kinds(tmp_path: Path) -> None:
    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
        warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: np.float64(step + 1) / 3)
        late = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 4])
        return model, optimizer, torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, late], [2])

    model, optimizer, scheduler = make()
    for _ in range(3):
        train(model, optimizer)
        scheduler.step()
    save(tmp_path, model=model, optimizer=optimizer, scheduler=scheduler)
    fresh, again, schedule = make()
    checkpointer(tmp_path, model=fresh, optimizer=again, scheduler=schedule).load(1)
    for _ in range(6):
        assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        train(model, optimizer)
        train(fresh, again)
        scheduler.step()
        schedule.step()


class Holder:
    def __init__(self, state: dict[Any, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[Any, Any]:
        return self.state

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        self.state = state


def test_names_with_slashes_do_not_collide(tmp_path: Path) -> None:
    state = {"a/b": torch.tensor(1.0), "a": {"b": torch.tensor(2.0)}, 0: torch.tensor(3.0), "0": torch.tensor(4.0)}
    save(tmp_path, thing=Holder(state))
    found = Holder({})
    checkpointer(tmp_path, thing=found).load(1)
    assert found.state == state


def test_averages_scalers_and_generators(tmp_path: Path) -> None:
    model: Any = net()
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    generator = torch.Generator().manual_seed(5)
    save(tmp_path, model=model, average=average, scaler=scaler, generator=generator, none=None)
    wanted = torch.rand(3, generator=generator)
    fresh = net(1)
    objects: dict[str, Any] = {
        "average": torch.optim.swa_utils.AveragedModel(fresh),
        "scaler": torch.amp.GradScaler("cpu"),
        "generator": torch.Generator(),
    }
    checkpointer(tmp_path, model=fresh, **objects).load(1)
    assert torch.equal(torch.rand(3, generator=objects["generator"]), wanted)
    assert objects["scaler"].get_scale() == 128.0
    assert torch.equal(objects["average"].module[0].weight, model[0].weight)


class Extra(torch.nn.Linear):
    """A module with state of another kind, as quantised ones have."""

    extra: Any = None

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def test_extra_state_of_modules(tmp_path: Path) -> None:
    model = Extra(2, 2)
    model.extra = {"scale": np.float32(1.5), "history": [1, 2]}
    save(tmp_path, model=model)
    fresh = Extra(2, 2)
    fresh.extra = {"scale": 0.0, "history": [0, 0]}
    checkpointer(tmp_path, model=fresh).load(1)
    assert fresh.extra == {"scale": 1.5, "history": [1, 2]}
    model.extra = {"what": object()}
    with pytest.raises(InvalidOperationError, match=r"model\._extra_state\.what: a builtins\.object cannot be kept"):
        save(tmp_path, step=2, model=model)


def test_a_group_that_was_several_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.AdamW([{"params": layer.parameters()} for layer in model])
    train(model, optimizer)
    save(tmp_path, model=model, optimizer=optimizer)
    fresh = net(1)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    again = torch.optim.AdamW(fresh.parameters())
    with pytest.raises(InvalidOperationError, match="were in 2 groups when the checkpoint was saved"):
        checkpointer(tmp_path, model=fresh, optimizer=again).load(1)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


class Kind(enum.IntEnum):
    WORD = 7


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ({Kind.WORD: 1}, {7: 1}),
        ({(Kind.WORD, "a"): 1}, {(7, "a"): 1}),
        ({np.str_("a"): np.array((1, 2), dtype="i4,i4")[()]}, {"a": (1, 2)}),
    ],
)
def test_keys_and_scalars_of_a_class_come_back_without_it(tmp_path: Path, state: Any, kept: Any) -> None:
    save(tmp_path, model=net(), counts=Holder(state), data=Holder(state))
    counts, data = Holder({}), Holder({})
    checkpointer(tmp_path, model=net(1), counts=counts, data=data).load(1)
    assert counts.state == data.state == kept


@pytest.mark.parametrize("value", [np.datetime64("2026-01-01"), np.longdouble(1.5), {(1, np.longdouble(2)): 0}])
def test_what_could_not_be_loaded_again_is_refused_when_it_is_saved(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InvalidOperationError, match="cannot be kept in a checkpoint"):
        save(tmp_path, model=net(), counts=Holder(value))


def test_two_optimizers_of_one_parameter_are_refused(tmp_path: Path) -> None:
    model = net()
    twice = [torch.optim.AdamW(model.parameters()), torch.optim.AdamW(model[0].parameters())]
    with pytest.raises(InvalidOperationError, match=r"shape \(8, 4\) is in two optimizers \(AdamW and AdamW\)"):
        checkpointer(tmp_path, model=model, optimizer=twice)


def test_options_that_are_containers_come_back(tmp_path: Path) -> None:
    def adam(model: torch.nn.Module, seen: int, beta: float) -> torch.optim.AdamW:
        betas: Any = (torch.tensor(beta), torch.tensor(0.99))
        optimizer = torch.optim.AdamW(model.parameters(), betas=betas, foreach=False)
        optimizer.param_groups[0]["stats"] = {1: {"seen": seen}, "empty": {}, "pair": [torch.tensor(seen), "x"]}
        return optimizer

    model = net()
    save(tmp_path, model=model, optimizer=adam(model, 5, 0.5))
    fresh = net(1)
    again = adam(fresh, 0, 0.9)
    held = again.param_groups[0]["stats"]["pair"][0]
    checkpointer(tmp_path, model=fresh, optimizer=again).load(1)
    group = again.param_groups[0]
    assert group["stats"] == {1: {"seen": 5}, "empty": {}, "pair": [torch.tensor(5), "x"]}
    assert group["stats"]["pair"][0] is held
    assert group["betas"] == (torch.tensor(0.5), torch.tensor(0.99))


class Shrink(torch.optim.Optimizer):
    """Has no state, and a step that needs no gradient to change what it trains."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"keep": 0.5})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(group["keep"])


def test_a_restore_takes_no_step_with_what_it_has_loaded(tmp_path: Path) -> None:
    model = net()
    optimizer = Shrink(model.parameters())
    train(model, optimizer)
    save(tmp_path, model=model, optimizer=optimizer)
    fresh = net(1)
    checkpointer(tmp_path, model=fresh, optimizer=Shrink(fresh.parameters())).load(1)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(fresh.parameters(), model.parameters(), strict=True))


class Watched(torch.optim.AdamW):
    """Tells of each parameter with memory that a step is taken for."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stepped = 0

    def step(self, closure: Any = None) -> Any:
        self.stepped += sum(not each.is_meta for group in self.param_groups for each in group["params"])
        return super().step(closure)


class Particular(Watched):
    """One whose step looks at values."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            assert all(float(each.grad.norm()) >= 0 for each in group["params"] if each.grad is not None)
        return super().step(closure)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("AdamW", {"amsgrad": True}),
        ("AdamW", {"foreach": True}),
        ("AdamW", {"fused": True}),
        ("SGD", {"momentum": 0.9}),
        ("SGD", {}),
        ("NAdam", {}),
        ("RMSprop", {"centered": True, "momentum": 0.5}),
        ("Adagrad", {}),
        ("Adafactor", {}),
        ("Muon", {}),
    ],
)
def test_a_fresh_optimizer_goes_on_as_the_saved_one(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    def make(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = net(seed)
        parameters = [each for each in model.parameters() if kind != "Muon" or each.dim() == 2]
        return model, getattr(torch.optim, kind)(parameters, lr=0.01, **options)

    model, optimizer = make(0)
    train(model, optimizer)
    train(model, optimizer)
    save(tmp_path, model=model, optimizer=optimizer)
    fresh, again = make(1)
    checkpointer(tmp_path, model=fresh, optimizer=again).load(1)
    assert len(again.state) == len(optimizer.state)
    for ours, theirs in zip(again.state.values(), optimizer.state.values(), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key] is value is None or torch.equal(ours[key], value), key
    train(model, optimizer)
    train(fresh, again)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_a_fresh_optimizer_takes_no_step_to_be_loaded(tmp_path: Path) -> None:
    model = net()
    optimizer = Watched(model.parameters())
    train(model, optimizer)
    save(tmp_path, model=model, optimizer=optimizer)
    fresh = net(1)
    again = Watched(fresh.parameters())
    checkpointer(tmp_path, model=fresh, optimizer=again).load(1)
    assert again.stepped == 0
    assert [each.grad for each in fresh.parameters()] == [None] * 4


def test_one_that_looks_at_values_takes_it_and_keeps_no_trace(tmp_path: Path) -> None:
    model = net()
    optimizer = Particular(model.parameters())
    train(model, optimizer)
    save(tmp_path, model=model, optimizer=optimizer)
    fresh = net(1)
    again = Particular(fresh.parameters())
    checkpointer(tmp_path, model=fresh, optimizer=again).load(1)
    assert again.stepped == 4
    for ours, theirs in zip(again.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_a_load_that_is_refused_leaves_a_fresh_optimizer_fresh(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    save(tmp_path, model=model, optimizer=optimizer)
    fresh = net(1)
    again = torch.optim.AdamW(fresh.parameters(), amsgrad=True)
    with pytest.raises(InvalidOperationError, match="max_exp_avg_sq"):
        checkpointer(tmp_path, model=fresh, optimizer=again).load(1)
    assert not again.state
