"""The alert rules and the dashboard: valid, tested, and about metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kbridge.metrics.families import METRICS, MetricType
from tests.support.require import require

EXAMPLES = Path(__file__).parents[1] / "examples" / "monitoring"


def exported() -> dict[str, set[str]]:
    """Return every name that Prometheus stores, with its labels."""
    found: dict[str, set[str]] = {}
    for metric in METRICS:
        if metric.type is MetricType.HISTOGRAM:
            found[f"{metric.exported}_bucket"] = {*metric.labels, "le"}
            found[f"{metric.exported}_count"] = found[f"{metric.exported}_sum"] = {*metric.labels}
        else:
            found[metric.exported] = {*metric.labels}
    return found


def rules() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((EXAMPLES / "alerts.yml").read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """Return the queries of the rules and of the dashboard."""
    dashboard = json.loads((EXAMPLES / "dashboard.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [*(rule["expr"] for rule in rules()), *shown]


@pytest.mark.parametrize("expression", expressions())
def test_metrics_and_labels_of_each_query_exist(expression: str) -> None:
    known = exported()
    named = re.findall(r"\b(kbridge_\w+)(?:\{([^}]*)\})?", expression)
    assert named or expression.startswith("up{")
    for name, matchers in named:
        assert name in known, name
        labels = set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", matchers))
        assert labels <= known[name] | {"instance", "job"}, expression


def test_each_alert_is_tested() -> None:
    tests = (EXAMPLES / "alerts_test.yml").read_text()
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for name in names:
        assert f'alertname="{name}"' in tests, name


def test_prometheus_accepts_the_rules_and_they_fire_as_tested() -> None:
    promtool = require("promtool")
    for command in (
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
        ["check", "config", "prometheus.yml"],
    ):
        done = subprocess.run([promtool, *command], cwd=EXAMPLES, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_parses_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    """As rules: promtool has no other check of a query."""
    promtool = require("promtool")
    queries = [expression.replace("$__rate_interval", "5m") for expression in expressions()]
    file = tmp_path / "queries.yml"
    recorded = [{"record": f"q{number}", "expr": query} for number, query in enumerate(queries)]
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": recorded}]}))
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads((EXAMPLES / "dashboard.json").read_text())
    assert (dashboard["title"], dashboard["uid"]) == ("kbridge", "kbridge")
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "instance"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(places) == len(set(places))


def test_the_dashboard_shows_every_metric_of_lost_output() -> None:
    """A loss that only one setting causes, as `rate_limit_policy=drop` does, is shown too."""
    lossy = [name for name in exported() if re.search(r"dropped|unsent", name)]
    assert len(lossy) > 3
    dashboard = (EXAMPLES / "dashboard.json").read_text()
    assert [name for name in lossy if name not in dashboard] == []
