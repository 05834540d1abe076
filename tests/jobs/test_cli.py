"""What every command line does alike."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

import shifter
from jobs import cli
from jobs.__main__ import app
from jobs.demo import RECIPE
from shifter.errors import ShifterError, StoreError
from shifter.recipe import Recipe


def status(error: BaseException) -> int:
    @cli.reports_errors
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        command()
    return caught.value.exit_code


def test_what_a_user_can_mend_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(StoreError("the disk is full")) == 1
    assert capsys.readouterr().err == "error: the disk is full\n"


def test_ctrl_c_is_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(KeyboardInterrupt()) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_sigterm_ends_a_job_as_ctrl_c_does_and_only_once(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned_up = []

    @cli.reports_errors
    def command() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)  # impatience does not cut the cleaning up short
            cleaned_up.append(True)
            raise

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == 143
    assert cleaned_up == [True]
    assert capsys.readouterr().err == "terminated\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_our_own_mistakes_keep_their_traceback() -> None:
    @cli.reports_errors
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command()


def test_what_is_not_installed_is_named_with_the_extra_that_brings_it() -> None:
    with pytest.raises(ShifterError, match=r"needs no_such_module, .*pip install 'shifter\[train\]'"):
        cli.require("generate", "train", "json", "no_such_module")
    cli.require("generate", "train", "json")


JOBS = ["generate", "inspect", "calibrate", "demo", "load", "replay"]


@pytest.mark.parametrize("job", [[], *([job] for job in JOBS)])
def test_every_command_tells_the_version(job: list[str]) -> None:
    result = CliRunner().invoke(app, [*job, "--version"])
    assert (result.exit_code, result.stdout) == (0, f"shifter {shifter.__version__}\n")


@pytest.mark.parametrize("job", ["generate", "demo"])
def test_the_example_of_set_works_on_the_default_recipe(job: str) -> None:
    told = " ".join(CliRunner().invoke(app, [job, "--help"], env={"COLUMNS": "300"}).stdout.split())
    examples = re.search(r"as in (\S+) or (\S+);", told)
    assert examples
    changed = Recipe.load(RECIPE, list(examples.groups()))
    assert len(Recipe.load(RECIPE).difference(changed)) == 2


@pytest.mark.parametrize("module", ["jobs", *(f"jobs.{job}" for job in JOBS)])
def test_help_needs_nothing_heavy_and_reads_well(module: str) -> None:
    script = (
        "import runpy, sys\n"
        "sys.argv = ['shifter', '--help']\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'ray', 'onnx', 'pyarrow', 'sklearn', 'plotly'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Usage: " in ended.stdout


def test_an_interrupted_job_leaves_with_its_status_whatever_the_interpreters_end_would_do() -> None:
    program = (
        "import atexit, os; from jobs import cli\n"
        "def job():\n"
        "    raise cli.Terminated\n"
        "atexit.register(os.abort); cli.run(cli.reports_errors(job))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (cli.TERMINATED, "", "terminated\n")
