from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from everstep.catalog.store.threads import DaemonPool, at_once


def test_a_pool_has_its_most_threads_and_tells_what_became_of_each_task() -> None:
    pool = DaemonPool(2, "test")
    both, go = threading.Barrier(3), threading.Event()

    def work(number: int) -> int:
        if number < 2:
            both.wait(30)
            assert go.wait(30)
        return 10 // (number - 5)

    futures = [pool.submit(work, number) for number in (0, 1, 2, 5)]
    both.wait(30)  # two run at the same time, and the others wait
    assert not futures[2].done()
    assert futures[2].cancel()
    go.set()
    assert [future.result(30) for future in futures[:2]] == [-2, -3]
    with pytest.raises(ZeroDivisionError):
        futures[3].result(30)


def test_a_closed_pool_does_what_was_submitted_and_its_threads_end() -> None:
    pool, go = DaemonPool(2, "closing"), threading.Event()
    futures = [pool.submit(go.wait, 30) for _ in range(3)]
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("closing-")]
    assert len(threads) == 2
    pool.close()
    go.set()
    assert [future.result(30) for future in futures] == [True] * 3
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert pool.submit(lambda: 7).result(30) == 7, "who goes on after all gets another thread"


def test_calls_at_once_all_end_before_one_raises() -> None:
    both, ended = threading.Barrier(2), []

    def fail() -> int:
        both.wait(30)
        raise OSError("away")

    def succeed() -> int:
        both.wait(30)
        ended.append(1)
        return 1

    with pytest.raises(OSError, match="away"):
        at_once([fail, succeed], "test")
    assert ended == [1]
    assert at_once([lambda: 1, lambda: 2], "test") == [1, 2]


def test_the_process_ends_without_waiting_for_them() -> None:
    script = """
import threading
from everstep.catalog.store.threads import DaemonPool, at_once
DaemonPool(1, "a").submit(threading.Event().wait)
threading.Thread(target=at_once, args=([threading.Event().wait], "b"), daemon=True).start()
print("over")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "over\n"
