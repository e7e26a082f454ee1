"""The page is made of the raw results and of nothing else."""

from __future__ import annotations

from benchmarks.recovery import report

ABOUT = {"began": "2030-01-01T00:00:00+00:00", "cpus": 2, "cpu": "a CPU", "memory_gib": 4}
ABOUT |= {"kubernetes": "v1", "torch": "2", "commit": "abc"}


def result(workload: str, fault: str, running: float | None, first: float | None) -> report.Json:
    phases = {"detect": 1.0, "load": 2.0}
    found = {"workload": workload, "fault": fault, "running": running, "first_step": first, "phases": phases}
    return {**found, "lost_steps": None, "load_average": 1.5}


def test_medians_with_their_range_by_workload_and_fault() -> None:
    results = [result("sleepers", "delete-pod", seconds, None) for seconds in (3.0, 1.0, 2.5)]
    made = report.tables({"runs": [{"about": ABOUT, "results": [*results, result("gang", "kill-rank", None, 7.0)]}]})
    assert "| sleepers | forced deletion of a pod | 3 | **2.50** (1.00–3.00) | – | – |" in made
    assert "| gang | SIGKILL of a rank | 1 | – | **7.00** (7.00–7.00) | – |" in made
    assert "| workload | fault | detect | load |" in made


def test_the_last_run_of_a_workload_counts() -> None:
    first = {
        "about": ABOUT,
        "results": [result("sleepers", "delete-pod", 9.0, None), result("gang", "kill-rank", None, 7.0)],
    }
    again = {"about": {**ABOUT, "commit": "def"}, "results": [result("sleepers", "delete-pod", 1.0, None)]}
    made = report.tables({"runs": [first, again]})
    assert "**9.00**" not in made
    assert (
        made.index("**7.00**") < made.index("everstep at def") < made.index("**1.00** (1.00–1.00)", made.index("def"))
    )
