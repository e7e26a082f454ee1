"""Alerts, dashboard and docs speak of metrics that the operator exports, with labels that these have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from everstep.catalog import Catalog, Entry, Heartbeat, Snapshot
from everstep_operator.api import TrainingJobStatus
from everstep_operator.job_metrics import JobSeries
from everstep_operator.memory import Memories
from everstep_operator.metrics import Metrics
from tests.support.trainingjobs import full_status

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "charts/everstep/monitoring"
PAGE = ROOT / "docs/observability.md"
NAME = re.compile(r"\beverstep_[a-z_]+\b")
OWN = {"everstep_operator"}
"""Words of this shape that are no metrics."""


def exported() -> dict[str, set[str]]:
    """Every sample's name, with the names of its labels, of a process with one job of which everything is known."""
    metrics, memories = Metrics(), Memories()
    metrics.registry.register(JobSeries(memories))
    memory = memories.of(("ns", "job"), "uid")
    memory.status = TrainingJobStatus.model_validate(full_status())
    when = "2026-01-01T00:00:00Z"
    location = "checkpoints/step_000000000010-000001-abcdef123456"
    entry = {"seq": 1, "step": 10, "epoch": 1, "attempt": 1, "location": location, "digest": "d", "bytes": 1}
    catalog = Catalog(sequence=1, checkpoints=(Entry.model_validate({**entry, "committed": when}),))
    memory.registers.snapshot = Snapshot(catalog, "token")
    times = {"time": when, "phase_since": when}
    beat = {"attempt": 1, "epoch": 1, "beat": 1, "phase": "training", "total_steps": 20, "local_step": 12, **times}
    memory.registers.heartbeat = Heartbeat.model_validate(beat)
    for labelled in (metrics.passes, metrics.recovery, metrics.restarts):
        labelled.labels("x")
    metrics.asked_kubernetes("get", "pods", 200)
    metrics.asked_storage("get", "ok", 0.1)
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return {name: labels for name, labels in found.items() if not name.endswith("_created")}


def alerts() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))
    return found


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    return found


def queries() -> list[str]:
    """Of alerts and panels. Variables of the dashboard stand between quotes, so that it is PromQL with them too."""
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return [alert["expr"] for alert in alerts()] + panels


def variables() -> list[str]:
    return [each["query"] for each in dashboard()["templating"]["list"] if each["type"] == "query"]


@pytest.mark.parametrize("expression", queries())
def test_expressions_are_promql_over_metrics_and_labels_that_exist(expression: str) -> None:
    known = exported()
    found = selectors(promql_parser.parse(expression))  # raises for what is no PromQL, types of arguments included
    assert found
    for selector in found:
        assert selector.name in known
        assert labels(selector) <= known[selector.name], selector.name


def selectors(expression: promql_parser.Expr) -> list[promql_parser.VectorSelector]:
    """All of an expression, those inside of ranges too."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(expression, visit)
    return found


def labels(selector: promql_parser.VectorSelector) -> set[str]:
    """Names of the labels that it matches."""
    return {matcher.name for matcher in selector.matchers.matchers}


@pytest.mark.parametrize("query", variables())
def test_variables_of_the_dashboard_are_of_series_that_exist(query: str) -> None:
    known = exported()
    selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()  # type: ignore[union-attr]
    (found,) = selectors(promql_parser.parse(selector))
    assert {label, *labels(found)} <= known[found.name or ""]


def test_rates_are_of_counters_and_thresholds_of_gauges() -> None:
    for expression in queries():
        for function, name in re.findall(r"(rate|increase)\((everstep_[a-z_]+)", expression):
            assert name.endswith(("_total", "_bucket", "_count", "_sum")), f"{function} of {name}"


def test_labels_in_the_alerts_words_are_those_of_their_series() -> None:
    known = exported()
    for alert in alerts():
        names = NAME.findall(alert["expr"])
        used = set(re.findall(r"\$labels\.([a-z_]+)", json.dumps(alert["annotations"])))
        assert used <= set.union(*(known[name] for name in names)), alert["alert"]
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} == alert["annotations"].keys()


def test_every_metric_is_on_the_page_and_the_page_invents_none() -> None:
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()}
    told = set(NAME.findall(PAGE.read_text(encoding="utf-8"))) - OWN
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in told}
    assert {name for name in families if name not in stems} == set(), "not documented"
    assert {name for name in stems if name not in families} == set(), "not exported"


def test_every_alert_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [alert["alert"] for alert in alerts() if f"`{alert['alert']}`" not in page] == []
