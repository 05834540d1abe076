"""The dashboard and the rules: every name and label in them is exported, every expression is PromQL."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from serve_app.metrics import Metrics
from serve_app.observer import Cause
from serve_app.reasons import FAILURES, REASONS
from serve_app.settings import Settings

from ..exported import SERVE_LABELS, Exported
from . import promql

INFRA = Path(__file__).parents[2] / "infra"
RULES = INFRA / "prometheus" / "rules.yml"
PANELS = json.loads((INFRA / "grafana" / "shifter.json").read_text())["panels"]

Known = Mapping[str, frozenset[str]]


@pytest.fixture(scope="module")
def known() -> Known:
    """Labels of every metric that is exported, and of what the rules record."""
    with pytest.MonkeyPatch.context() as patch:
        exported = Exported().patch(patch)
        Metrics(Settings(portfolio="x.zip"))
    found = {name: one.labels | SERVE_LABELS for name, one in exported.described.items()}
    for rule in rules():
        if "record" in rule:
            found[rule["record"]] = promql.labels(promql.parse(rule["expr"]), found)
    return found


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from group["rules"]


def queries() -> Iterator[tuple[str, str]]:
    """Where, and what: every expression in the dashboard and in the rules."""
    for panel in PANELS:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield from ((rule.get("alert") or rule["record"], rule["expr"]) for rule in rules())


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_what_is_asked_for_is_exported(known: Known, where: str, query: str) -> None:
    expression = promql.parse(query)
    assert promql.names(expression)
    for name, label in promql.wanted(expression):
        assert name in known, where
        assert label in known[name], f"{where}: {name} has no label {label}"
    assert promql.names(expression) <= known.keys()


def test_values_of_labels_that_are_asked_for_exist() -> None:
    values = {"cause": {*get_args(Cause), *FAILURES}, "reason": set(REASONS)}
    seen = 0
    for _, query in queries():
        for label, told in re.findall(r'\b(cause|reason)[=!]~?"([^"]*)"', query):
            assert set(told.split("|")) <= values[label], query
            seen += 1
    assert seen


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_legend_names_only_labels_that_are_left(known: Known, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        left = promql.labels(promql.parse(target["expr"]), known)
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= left


def test_an_alert_speaks_of_labels_that_it_has(known: Known) -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    for rule in alerts:
        said = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", said)) <= promql.labels(promql.parse(rule["expr"]), known)
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_nearly_all_that_is_exported_is_shown_or_watched(known: Known) -> None:
    asked = {name for _, query in queries() for name in promql.names(promql.parse(query))}
    # Totals of what quantiles are shown of.
    rest = {name for name in known if name not in asked and not re.search(r"_(sum|count)_total$", name)}
    assert not rest


def test_the_checker_finds_what_is_wrong(known: Known) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        promql.parse("sum by (application (rate(x[1m])))")
    sums = promql.parse('sum by (site) (rate(ray_shifter_ready{cause="x"}[$__rate_interval])) / no_such')
    assert promql.names(sums) == {"ray_shifter_ready", "no_such"}
    assert promql.wanted(sums) == {("ray_shifter_ready", "site"), ("ray_shifter_ready", "cause")}
    assert promql.labels(sums, known) == {"site"}
    assert ("a", "le") in promql.wanted(promql.parse("histogram_quantile(0.9, rate(a[1m]))"))


def test_the_dashboard_imports_as_it_is() -> None:
    """Its data source is a variable, none of some machine's; no panel lies on another."""
    dashboard = json.loads((INFRA / "grafana" / "shifter.json").read_text())
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["application"]["query"]["query"] == "label_values(ray_shifter_ready, application)"
    assert "__inputs" not in dashboard
    assert dashboard.get("id") is None
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        assert panel["description"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        for target in panel["targets"]:
            assert 'application=~"$application"' in target["expr"]
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert set(_sources(dashboard)) == {("prometheus", "${datasource}")}


def _sources(node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        if "datasource" in node:
            yield node["datasource"]["type"], node["datasource"]["uid"]
        for child in node.values():
            yield from _sources(child)
    elif isinstance(node, list):
        for child in node:
            yield from _sources(child)


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "rules.yml"),
        ("check", "config", "--syntax-only", "prometheus.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_prometheus_itself_takes_the_rules_and_each_alert_fires(arguments: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; on Debian: apt install prometheus")
    done = subprocess.run(
        [promtool, *arguments], cwd=RULES.parent, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_tested_one_by_one() -> None:
    tests = yaml.safe_load((INFRA / "prometheus" / "rules_test.yml").read_text())["tests"]
    fired = re.findall(r'alertname="(\w+)"', json.dumps(tests).replace('\\"', '"'))
    assert sorted(fired) == sorted(rule["alert"] for rule in rules() if "alert" in rule)
