"""Portfolios that differ from the usual one."""

from __future__ import annotations

from dataclasses import replace

from shifter.portfolio import Portfolio, pack


def other_portfolio(portfolio: Portfolio, *, classes: tuple[str, ...] | None = None) -> bytes:
    """The same names for other variants: the larger one's weights under the smaller one's name."""
    one, four, sixteen = (portfolio.inflate(name) for name in ("1x", "4x", "16x"))
    some = [replace(four, name="16x"), replace(one, name="4x"), replace(sixteen, name="1x")]
    spec = portfolio.input_spec
    return pack(some, replace(spec, classes=classes or spec.classes), model="newer", provenance={})
