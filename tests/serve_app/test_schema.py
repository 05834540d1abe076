"""The schema is what is pinned, and the service does what the schema says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.openapi import PINNED, described
from serve_app.responses import EVERYWHERE

from .server import ROOT, Server, serving

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def server(portfolio_bytes: bytes, tmp_path_factory: pytest.TempPathFactory) -> Server:
    folder = tmp_path_factory.mktemp("schema")
    (folder / "portfolio.zip").write_bytes(portfolio_bytes)
    with serving(folder / "portfolio.zip", folder / "log", max_images=8, max_body_bytes=1 << 16) as server:
        yield server


def test_the_pinned_schema_is_the_one_that_is_served() -> None:
    assert PINNED.read_text() == described(), "the HTTP interface has moved: if that is meant, `make surface`"


def test_every_route_declares_its_errors_in_the_one_form() -> None:
    for path, operations in json.loads(described())["paths"].items():
        for method, operation in operations.items():
            declared = operation["responses"]
            assert {str(status) for status in EVERYWHERE} <= set(declared), (method, path)
            for status, response in declared.items():
                if int(status) >= 400:
                    assert response["content"]["application/json"]["schema"] == {
                        "$ref": "#/components/schemas/Error"
                    }, (method, path, status)
                else:
                    assert response["content"], f"{method} {path}: {status} declares no content"


def schemathesis(server: Server, folder: Path, examples: int, *more: str) -> str:
    """What it says, having found nothing."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")]
    command += ["run", f"{server.url}/openapi.json", "--max-examples", str(examples), "--no-color", *more]
    environment = {"PYTHONPATH": f"{ROOT}:{HERE}", "SCHEMATHESIS_HOOKS": "schemathesis_hooks"}
    ran = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Traceback" not in server.log.read_text()
    return ran.stdout


def test_what_is_declared_is_what_is_done(server: Server, tmp_path: Path) -> None:
    """Status codes, content types, headers and bodies as declared; wrong input refused; never a 5xx."""
    said = schemathesis(server, tmp_path, 30, "--generation-deterministic")
    tested = re.search(r"Tested: (\d+)", said)
    operations = sum(len(methods) for methods in json.loads(described())["paths"].values())
    assert tested is not None, said
    assert int(tested[1]) == operations, said


@pytest.mark.long
def test_a_long_search_finds_nothing_either(server: Server, tmp_path: Path) -> None:
    schemathesis(server, tmp_path, 200, "--generation-deterministic")
