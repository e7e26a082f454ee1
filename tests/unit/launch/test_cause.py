from __future__ import annotations

from datetime import UTC, datetime

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from everstep import exits
from everstep.failure import FailureRecord
from everstep.launch.cause import AGENTS_PATIENCE, choose, final_code

NOW = datetime(2026, 1, 2, tzinfo=UTC)
FENCED = FailureRecord(rank=1, exit_code=exits.FENCED, exception="FencedError", message="fenced", time=NOW)
LOST = FailureRecord(rank=1, exit_code=1, message="connection closed by peer", step=4, peer_lost=True, time=NOW)


def failed(later: dict[int, int] | None = None, **codes: int) -> dict[int, ProcessFailure]:
    """Exit codes by rank ("r0"), and for some how many seconds after the first they were seen."""
    found = {}
    for name, code in codes.items():
        rank = int(name[1:])
        found[rank] = failure = ProcessFailure(local_rank=rank, pid=100 + rank, exitcode=code, error_file="")
        failure.timestamp = 1000 + (later or {}).get(rank, 0)
    return found


@pytest.mark.parametrize("ended", [exits.FENCED, -15, -6, 1])
def test_what_a_rank_wrote_stands_however_it_then_left(ended: int) -> None:
    assert choose(failed(r0=exits.FENCED, r1=ended), FENCED, 0) == FENCED


def test_a_rank_that_went_on_and_ended_by_another_code_has_written_of_something_else() -> None:
    cause = choose(failed(r1=7), FENCED, 0)
    assert (cause.rank, cause.exit_code, cause.exception) == (1, 7, None)


def test_a_record_of_an_earlier_worker_group_tells_nothing() -> None:
    cause = choose(failed(r0=3, r1=-15), FENCED, 1)
    assert (cause.rank, cause.exit_code, cause.restart) == (0, 3, 0)


@pytest.mark.parametrize("signal", [9, 11])
def test_a_killed_rank_comes_before_what_its_peers_wrote(signal: int) -> None:
    cause = choose(failed(r0=-signal, r1=1, later={0: 1}), LOST, 0)
    assert (cause.rank, cause.exit_code, cause.step) == (0, 128 + signal, 4)
    assert cause.signal in ("SIGKILL", "SIGSEGV")


def test_a_rank_that_the_agent_killed_for_not_ending_is_no_cause() -> None:
    error = FailureRecord(rank=1, exit_code=1, exception="ValueError", message="no", time=NOW)
    ended = failed(r0=-9, r1=1, later={0: AGENTS_PATIENCE + 15})
    assert choose(ended, error, 0) == error
    assert choose(ended, None, 0).rank == 1


def test_without_a_record_the_exit_code_speaks_and_never_the_agents_own_sigterm() -> None:
    cause = choose(failed(r0=-15, r1=78), None, 0)
    assert (cause.rank, cause.exit_code, cause.signal) == (1, 78, None)


def test_an_exception_is_the_cause_of_an_abort() -> None:
    error = FailureRecord(rank=0, exit_code=1, exception="ValueError", message="bad batch", time=NOW)
    assert choose(failed(r0=1, r1=-6), error, 0) == error


def test_the_code_of_a_peer_tells_more_than_its_loss() -> None:
    cause = choose(failed(r0=42, r1=1), LOST, 0)
    assert (cause.rank, cause.exit_code) == (0, 42)
    assert choose(failed(r0=-15, r1=1), LOST, 0) == LOST


def test_only_an_end_for_good_outlives_an_agent_that_fails_besides() -> None:
    assert final_code(FENCED, 0) == exits.FENCED
    assert final_code(FENCED, 1) is None
    assert final_code(LOST, 0) is None
    assert final_code(None, 0) is None
