"""The application on a real Ray Serve: it starts, answers, says what it does, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from jobs.cluster import cluster
from jobs.leftovers import Descendants
from jobs.protocols import encode
from jobs.serving import serving
from jobs.trial import Driver, check_answers, descends_and_returns
from serve_app.settings import Settings
from shifter.errors import EngineError
from shifter.portfolio import Portfolio


@pytest.mark.ray
def test_applications_are_served_side_by_side_and_gone_afterwards(
    portfolio_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    portfolio = Portfolio.open(portfolio_path)
    pixels = np.random.default_rng(0).integers(0, 17, (12, 1, 8, 8))
    said: list[str] = []
    with Descendants() as descendants, cluster(2, said.append), serving() as served:
        folder = Path(os.environ["RAY_TMPDIR"])
        assert said == ["starting Ray …", f"on a local Ray cluster with {max(os.cpu_count() or 1, 2)} CPUs"]
        urls = served.deploy(
            {
                "fixed": Settings(portfolio=str(portfolio_path), policy="fixed", variant="16x", cpus=0.1),
                "switching": Settings(portfolio=str(portfolio_path), objective_ms=1000, cpus=0.1),
            }
        )
        for url in urls.values():
            with urlopen(f"{url}/status", timeout=30) as answer:
                status = json.load(answer)
            assert status["portfolio"] == portfolio.digest
            assert [v["name"] for v in status["variants"]] == list(portfolio.names)
            with urlopen(url, timeout=30) as answer:
                assert answer.url == f"{url}/"  # what the page refers to is relative to that
                addresses = re.findall(r'(?:href|src)="(page/.*?)"', answer.read().decode())
            assert len(addresses) == 3
            for address in (*addresses, "live.json"):
                urlopen(f"{url}/{address}", timeout=30).close()

        records = Driver(pixels, per_request=5).saturate(urls["fixed"], seconds=1, clients=2).records
        assert {r.status for r in records} == {200}
        assert {r.variant for r in records} == {"16x"}
        assert check_answers(records, portfolio, pixels) == 5 * len(records)
        assert not descends_and_returns(records, portfolio.names)

        wrong = Request(
            f"{urls['switching']}/predict",
            data=encode(pixels[:, :, :7]),
            headers={"Content-Type": "application/json"},
        )
        with pytest.raises(HTTPError) as refused:
            urlopen(wrong, timeout=30)
        with refused.value as answer:
            assert answer.code == 422
            assert "(1, 7, 8)" in json.load(answer)["error"]

        with pytest.raises(EngineError, match="unknown"):
            served.deploy(
                {"unknown": Settings(portfolio=str(portfolio_path), policy="fixed", variant="3x", cpus=0.1)}
            )
    assert descendants.check_gone() > 0
    assert not folder.exists()
