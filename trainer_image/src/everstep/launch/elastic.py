"""torchrun within this process, so that what its agent knows of a failed worker is not lost with it."""

from __future__ import annotations

import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.run import parse_args, run

from everstep import exits
from everstep.checkpoint import termination
from everstep.launch import stacks, warm
from everstep.launch.cause import FINAL, choose, final_code

WORKER = "everstep.launch.worker"


def caller_name(depth: int = 2) -> str:
    """As torchrun's own, which the rendezvous asks for each event that it may record. That one reads the sources of all
    callers, twice: half a second of a gang's start."""
    try:
        return sys._getframe(depth).f_code.co_name
    except ValueError:
        return "no_method_name"


class _Agent:
    """torchrun's own way to watch its workers, and ours on top: restarts in place end where they are pointless."""

    watch = LocalElasticAgent._monitor_workers
    stop = LocalElasticAgent._shutdown
    restarts = 0
    """What TORCHELASTIC_RESTART_COUNT is to the workers that run now."""

    @staticmethod
    def install(folder: Path) -> None:
        """`folder`: for the workers' stacks."""

        def monitor(agent: LocalElasticAgent, group: WorkerGroup) -> RunResult:
            result: RunResult = _Agent.watch(agent, group)
            _Agent.restarts = group.spec.max_restarts - agent._remaining_restarts
            if any(failure.exitcode in FINAL for failure in result.failures.values()):
                agent._remaining_restarts = 0
            return result

        def shutdown(agent: LocalElasticAgent, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
            told = isinstance(sys.exception(), SignalException) and agent._pcontext is not None
            pids = agent._pcontext.pids() if told and agent._pcontext is not None else {}
            taken = stacks.in_background(folder, pids, stacks.is_given_up, stacks.upload) if pids else None
            _Agent.stop(agent, death_sig, timeout)
            if taken is not None:
                taken.join(stacks.KEEP_SECONDS)

        dynamic_rendezvous.get_method_name = caller_name
        LocalElasticAgent._monitor_workers = monitor  # type: ignore[method-assign]
        LocalElasticAgent._shutdown = shutdown  # type: ignore[method-assign, assignment]


def run_torchrun(arguments: Sequence[str]) -> int:
    """Returns the exit code for the container: that of the worker that failed first, 143 after SIGTERM."""
    parsed = parse_args(list(arguments))  # type: ignore[no-untyped-call]
    script = wrap(parsed)
    if script is not None:
        warm.install(script)
    # torchrun's shared store lives on across restarts in place: a new worker group would find, and dial, the addresses
    # that its predecessor left in it. A store of its own for each worker group has no such keys.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    path = termination.termination_path()
    try:
        with stacks.prepared() as folder:
            _Agent.install(folder)
            run(parsed)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        print(error, file=sys.stderr, flush=True)
        record = choose(error.failures, termination.read_record(path), _Agent.restarts)
        termination.write_record(record, replace=True)
        return record.exit_code or exits.FAILED
    except SignalException as error:
        termination.write_record(termination.describe_sigterm(None, f"ended by {error.sigval.name}"))
        return 128 + error.sigval.value
    except Exception as error:
        code = final_code(termination.read_record(path), _Agent.restarts)
        if code is not None:
            print(f"torchrun's agent failed besides: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return code
        termination.write_record(termination.describe(error, exits.FAILED))
        raise
    return 0


def wrap(parsed: Namespace) -> str | None:
    """Run the script below a thin module that records what it dies of, even in its first import. Returns the script, or
    None where Python does not run it."""
    if parsed.no_python or parsed.run_path:
        return None
    told: str = parsed.training_script
    script = ["-m", parsed.training_script] if parsed.module else [parsed.training_script]
    parsed.training_script_args = [*script, *parsed.training_script_args]
    parsed.training_script = WORKER
    parsed.module = True
    return told
