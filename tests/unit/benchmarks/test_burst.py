"""Of the raw results to the table, and what a process has cost."""

from __future__ import annotations

import os

from benchmarks.burst import report
from benchmarks.burst.__main__ import counts
from benchmarks.burst.cost import Cost
from tests.plugins.audit import Request


def test_quantiles_are_values_that_were_measured() -> None:
    values = [5.0, 1.0, 2.0, 4.0]
    assert report.quantile(values, 0.5) == 4.0
    assert report.quantile(values, 0.99) == 5.0
    assert report.quantile([3.0], 0.5) == 3.0


def test_the_table_shows_times_and_requests() -> None:
    cost = {"operator_peak_mib": 123.4, "operator_cpu": 9.0, "api_cpu": 30.0, "rest_cpu_minute": 1.5}
    about = {"began": "2030-01-01T00:00:00+00:00", "cpus": 2, "load_average": [0.5, 0, 0], "commit": "abc"}
    run = {"about": {**about, "jobs": 7, "nodes": 2}, "cost": cost, "requests": {"get pods": 1, "create pods": 14}}
    run |= {"created": 1.0, "fenced": 2.0, "gangs": 3.25, "median": 1.0, "p99": 2.0, "rest_requests": {}}
    made = report.tables(run)
    assert "| all their gangs created after | **3.2 s** |" in made
    assert "**123 MiB**" in made
    assert made.index("| create pods | 14 |") < made.index("| get pods | 1 |")


def test_requests_are_counted_by_kind_for_one_agent_up_to_a_moment() -> None:
    def request(verb: str, agent: str) -> Request:
        return Request(verb, "pods", "ns", "pod", "user", agent, 200, "")

    later = [request("get", "everstep-operator")]
    found = [request("create", "everstep-operator/1"), request("create", "kubectl"), *later]
    assert counts(found, later, "everstep-operator") == {"create pods": 1}


def test_a_process_has_cost_something() -> None:
    cost = Cost.of(os.getpid())
    assert cost.cpu_seconds > 0
    assert 0 < cost.mib <= cost.peak_mib
