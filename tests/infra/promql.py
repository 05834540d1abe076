"""What a PromQL expression reads: names of metrics, and the labels that it expects of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import promql_parser as promql

WINDOWS = {"$__rate_interval": "1m", "$__interval": "1m", "$__range": "1h"}
"""What Grafana fills in."""


def parse(text: str) -> Any:
    """Raises ValueError if it is none. A variable within quotes is text already."""
    for variable, window in WINDOWS.items():
        text = text.replace(variable, window)
    return promql.parse(text)


def names(expression: Any) -> set[str]:
    """Metrics that are read."""
    return {node.name for node in _nodes(expression) if isinstance(node, promql.VectorSelector)}


def wanted(expression: Any) -> set[tuple[str, str]]:
    """Metrics, each with a label that it is chosen, summed or matched by."""
    found: set[tuple[str, str]] = set()
    for node in _nodes(expression):
        match node:
            case promql.VectorSelector():
                found |= {(node.name, matcher.name) for matcher in node.matchers.matchers}
            case promql.AggregateExpr() if node.modifier is not None:
                found |= {(name, label) for name in names(node) for label in node.modifier.labels}
            case promql.Call() if node.func.name == "histogram_quantile":
                found |= {(name, "le") for name in names(node)}
    return found


def labels(expression: Any, known: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Labels of the result, where aggregations are ``by``, and both sides of an operator have the same."""
    match expression:
        case promql.VectorSelector():
            return known[expression.name]
        case promql.AggregateExpr():
            return frozenset(expression.modifier.labels) if expression.modifier else frozenset()
        case promql.Call() if expression.func.name == "histogram_quantile":
            return labels(expression.args[1], known) - {"le"}
        case promql.BinaryExpr():
            number = isinstance(expression.lhs, promql.NumberLiteral)
            return labels(expression.rhs if number else expression.lhs, known)
        case _:
            return labels(_children(expression)[0], known)


def _nodes(expression: Any) -> Iterator[Any]:
    yield expression
    for child in _children(expression):
        yield from _nodes(child)


def _children(node: Any) -> list[Any]:
    several = list(getattr(node, "args", None) or [])
    ones = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector")]
    return several + [one for one in ones if one is not None]
