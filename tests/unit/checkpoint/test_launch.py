from __future__ import annotations

from datetime import UTC, datetime

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from everstep.failure import FailureRecord
from everstep.launch.elastic import choose

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def failure(rank: int, exit_code: int) -> ProcessFailure:
    return ProcessFailure(local_rank=rank, pid=100 + rank, exitcode=exit_code, error_file="<N/A>")


def test_a_killed_rank_is_the_cause_whatever_its_peers_wrote() -> None:
    record = FailureRecord(rank=0, exit_code=1, message="Connection closed by peer", time=NOW, step=12, peer_lost=True)
    chosen = choose({0: failure(0, 1), 1: failure(1, -9)}, record, 0)
    assert (chosen.rank, chosen.signal, chosen.exit_code, chosen.step) == (1, "SIGKILL", 137, 12)


def test_an_exception_is_the_cause_of_an_abort() -> None:
    record = FailureRecord(rank=0, exit_code=1, exception="ValueError", message="bad batch", time=NOW)
    assert choose({0: failure(0, 1), 1: failure(1, -6)}, record, 0) is record


def test_without_a_record_the_exit_code_speaks() -> None:
    chosen = choose({1: failure(1, 3)}, None, 0)
    assert (chosen.rank, chosen.exit_code, chosen.signal) == (1, 3, None)


def test_the_record_of_an_earlier_worker_group_does_not_count() -> None:
    stale = FailureRecord(rank=0, exit_code=1, message="long ago", time=NOW)
    assert choose({0: failure(0, -15), 1: failure(1, 3)}, stale, 1).exit_code == 3


def test_the_agents_own_sigterm_is_no_cause() -> None:
    record = FailureRecord(rank=0, exit_code=78, message="misfit", time=NOW)
    assert choose({0: failure(0, -15), 1: failure(1, 78)}, record, 0) is record
    assert choose({0: failure(0, -15), 1: failure(1, 78)}, None, 0).exit_code == 78
