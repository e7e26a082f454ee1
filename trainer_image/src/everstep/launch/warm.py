"""Ranks that are forked, warm, from the agent's imports: a gang starts sooner, and starts again in place at once.

A fork differs from a new process in what its libraries found when they were loaded. So a rank is forked only where its
environment differs from theirs in nothing but what torchrun tells each rank, and otherwise started as torchrun does.
Not by itself where there are accelerators: their runtimes do not survive a fork once they are in use, and whether a
library has touched one while it was imported nobody can tell. docs/recovery.md
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from everstep.launch.nursery import Nursery

SWITCH = "EVERSTEP_WARM_RANKS"
"""1: fork ranks; 0: do not; otherwise where the machine shows no accelerator."""
PRELOAD = "EVERSTEP_PRELOAD"
"""Modules that a forked rank is to find imported, with commas between; they must not touch an accelerator."""
MODULES = ("everstep.checkpoint.checkpointer", "everstep.launch.worker", "torch.distributed.fsdp", "torch._dynamo")
"""The last: what making an optimizer imports."""
OF_THE_RECIPE = ("everstep.train.recipe", "transformers.models.gpt2.modeling_gpt2", "torch.utils.tensorboard", "boto3")
ACCELERATORS = (
    *("nvidia[0-9]*", "nvidiactl", "dxg", "kfd", "dri/renderD*", "accel*", "davinci*", "neuron*", "vfio/[0-9]*"),
    "hl[0-9]*",
)
"""What stands in /dev where there is one."""
THREADS = "OMP_NUM_THREADS"
_TORCHRUNS = ("TORCHELASTIC_", "EVERSTEP_", "ROLE_", "GROUP_", "LOCAL_", "MASTER_", "TORCH_NCCL_", "NCCL_ASYNC_")
_TORCHRUNS_OWN = ("RANK", "WORLD_SIZE", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE")
_RANK = f"{__name__}:rank"
_WORKER = [sys.executable, "-u", "-m", "everstep.launch.worker"]
"""Not another python (PYTHON_EXEC), nor below a program that binds it to processors."""
_PR_SET_NAME = 15


def prepare(arguments: Sequence[str]) -> None:
    """Before torch is loaded: what torchrun would tell the ranks' libraries, this process's must be told."""
    if not wanted() or THREADS in os.environ:
        return
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    default = os.environ.get("PET_NPROC_PER_NODE", "1")
    parser.add_argument("--nproc-per-node", "--nproc_per_node", default=default)
    try:
        count = parser.parse_known_args(_before_script(arguments))[0].nproc_per_node
    except argparse.ArgumentError:
        return  # torchrun says what is wrong
    if count.isdecimal() and int(count) > 1:
        print(
            f"everstep: {THREADS}=1, torchrun's choice for several ranks a node; set another if you like",
            file=sys.stderr,
        )
        os.environ[THREADS] = "1"


def _before_script(arguments: Sequence[str]) -> Sequence[str]:
    """A script may have options of the same names."""
    for place, argument in enumerate(arguments):
        is_module = place > 0 and arguments[place - 1] in ("-m", "--module") and not argument.startswith("-")
        if is_module or argument.endswith(".py"):
            return arguments[:place]
    return arguments


def wanted(devices: Path = Path("/dev")) -> bool:
    said = os.environ.get(SWITCH, "")
    return said == "1" or (said != "0" and not any(next(devices.glob(name), None) for name in ACCELERATORS))


def install(script: str) -> None:
    """Have torchrun's ranks forked from a fork of this process, made now. `script`: the module or file that is run."""
    if not wanted():
        return
    if threading.active_count() > 1:
        print("everstep: ranks are not forked: something has started threads already", file=sys.stderr)
        return
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    sys.stdout.flush()
    loaded = dict(os.environ)
    try:
        nursery = Nursery.split_off(_modules(script), _folder(script))
    except OSError as error:
        print(f"everstep: ranks are not forked: {error}", file=sys.stderr)
        return
    start = SubprocessHandler._popen

    def popen(self: Any, command: tuple[str, ...], environment: dict[str, str]) -> Any:
        if list(command[:4]) == _WORKER and is_same(loaded, environment):
            outputs = [self._stdout.fileno() if self._stdout else 1, self._stderr.fileno() if self._stderr else 2]
            try:
                return nursery.fork(_RANK, command[4:], environment, os.getcwd(), outputs)
            except OSError as error:
                print(f"everstep: a rank is started anew: {error}", file=sys.stderr, flush=True)
        return start(self, command, environment)

    SubprocessHandler._popen = popen  # type: ignore[method-assign, assignment]


def _modules(script: str) -> list[str]:
    own = os.environ.get(PRELOAD, "").replace(",", " ").split()
    return [*MODULES, *(OF_THE_RECIPE if script == "everstep.train" else ()), *own]


def _folder(script: str) -> str:
    """Where a rank looks for modules first."""
    return os.path.dirname(os.path.abspath(script)) if script.endswith(".py") else os.getcwd()


def is_same(loaded: Mapping[str, str], environment: Mapping[str, str]) -> bool:
    """Whether libraries would find in both what they look for when they are loaded."""
    changed = {name for name in {*loaded, *environment} if loaded.get(name) != environment.get(name)}
    return all(name in _TORCHRUNS_OWN or name.startswith(_TORCHRUNS) for name in changed)


def rank() -> None:
    """What `python -m everstep.launch.worker` runs, under a name of its own in `ps` and `top`."""
    from everstep.launch.worker import main

    ctypes.CDLL(None).prctl(_PR_SET_NAME, name(os.environ["LOCAL_RANK"]).encode())
    main()


def name(local_rank: str) -> str:
    """What the kernel calls a forked rank; its command line is the agent's."""
    return f"rank-{local_rank}"
