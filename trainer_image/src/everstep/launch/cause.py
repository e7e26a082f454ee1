"""Which of the things seen at a worker group's end was the cause: one rank's end brings about those of the others."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from datetime import UTC, datetime

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from everstep import exits
from everstep.failure import FailureRecord

FINAL = {exits.UNSAVED, exits.FENCED, exits.MISFIT, exits.TERMINATED}
"""Exit codes after which starting the workers again in place would only end the same way."""

_ROOT_SIGNALS = {"SIGKILL", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE"}
"""Deaths that no other rank's end brings about; an abort or an exception may follow from a lost peer."""

_AT_THE_END = {-signal.SIGTERM, -signal.SIGABRT, exits.FAILED}
"""What a rank that has written its record may yet end with: told to end by the agent, or failing as it leaves a group
whose peers are gone."""

AGENTS_PATIENCE = 15
"""Seconds. torchrun's agent kills a worker 30 s after it told it to end: a death by SIGKILL so much later than the
first failure is the agent's doing."""


def final_code(record: FailureRecord | None, restarts: int) -> int | None:
    """What a rank of the present worker group ended with, where that ends all of them: an agent that was stopped with
    it finds its rendezvous lost as well, and must not hide that the group was fenced."""
    if record is None or record.restart != restarts or record.exit_code not in FINAL:
        return None
    return record.exit_code


def choose(failures: Mapping[int, ProcessFailure], record: FailureRecord | None, restarts: int) -> FailureRecord:
    """The cause: a rank that was killed, else what a rank wrote down, else what the agent saw first.

    A record of an earlier worker group than the one after `restarts` restarts tells nothing, and one of a lost peer
    less than the exit code of that peer.
    """
    if record is not None and record.restart != restarts:
        record = None
    first = min(failures, key=lambda rank: (failures[rank].exitcode == -signal.SIGTERM, failures[rank].timestamp, rank))
    latest = failures[first].timestamp + AGENTS_PATIENCE
    for rank in sorted(failures):
        if failures[rank].signal_name() in _ROOT_SIGNALS and failures[rank].timestamp <= latest:
            return _seen(rank, failures[rank], record)
    if record is None or not _is_of(record, failures):
        return _seen(first, failures[first], record)
    for rank in sorted(failures) if record.peer_lost else ():
        if rank != record.rank and failures[rank].exitcode not in _AT_THE_END:
            return _seen(rank, failures[rank], record)
    return record


def _is_of(record: FailureRecord, failures: Mapping[int, ProcessFailure]) -> bool:
    """Whether the rank that wrote it ended with it, rather than with something that came later."""
    if record.rank is None or record.rank not in failures:
        return False
    return failures[record.rank].exitcode in {record.exit_code, *_AT_THE_END}


def _seen(rank: int, failure: ProcessFailure, record: FailureRecord | None) -> FailureRecord:
    by_signal = failure.exitcode < 0
    return FailureRecord(
        rank=rank,
        exit_code=128 - failure.exitcode if by_signal else failure.exitcode,
        signal=failure.signal_name() if by_signal else None,
        message=failure.message if by_signal else f"the worker ended with exit code {failure.exitcode}",
        step=record.step if record is not None else None,
        time=datetime.now(UTC),
        restart=record.restart if record is not None else 0,
    )
