"""Every command block of the README is executed, or says why not.

A comment before each block marks it: ``test: run`` (in ``make test``), ``test: long`` (in
``make test-long``) or ``test: no — reason``. Blocks of one kind run in the README's order, in one
copy of the checkout, so that a later one may use what an earlier one made.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"<!-- test: (?:(?P<kind>run|long)|no — (?P<reason>\S.*\S)) -->")
FENCE = re.compile(r"^( *)```(?P<language>[\w-]*)\n(?P<text>.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    text: str
    mark: re.Match[str] | None


def blocks(markdown: str) -> Iterator[Block]:
    for fence in FENCE.finditer(markdown):
        before = markdown[: fence.start()]
        above = before.rstrip().rpartition("\n")[2].strip()
        yield Block(before.count("\n") + 1, fence["language"], fence["text"], MARK.fullmatch(above))


BLOCKS = list(blocks((ROOT / "README.md").read_text()))


def marked(kind: str) -> list[pytest.param]:
    return [
        pytest.param(block, id=f"line-{block.line}")
        for block in BLOCKS
        if block.mark and block.mark["kind"] == kind
    ]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the environment of this one, so that nothing is left here."""
    copy = tmp_path_factory.mktemp("readme") / "shifter"
    unwanted = shutil.ignore_patterns(".venv", ".git", "runs", "build", "dist", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=unwanted)
    (copy / ".venv").symlink_to(Path(sys.prefix))
    # Older than that environment, or `make install` would install this copy into it, for good.
    for file in copy.iterdir():
        if file.is_file():
            os.utime(file, (946684800, 946684800))  # 2000: ZIP files begin in 1980
    return copy


def execute(block: Block, folder: Path, seconds: float) -> None:
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    program = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[block.language]
    outcome = subprocess.run(
        [*program, block.text],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert outcome.returncode == 0, f"README.md, line {block.line}:\n{block.text}\n{outcome.stdout}"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line-{block.line}")
def test_every_block_is_marked(block: Block) -> None:
    expected = "'<!-- test: run -->', '<!-- test: long -->' or '<!-- test: no — reason -->'"
    assert block.mark, f"README.md, line {block.line}: the line above the block must be {expected}"
    assert block.language in ("bash", "python") or block.mark["reason"], (
        f"README.md, line {block.line}: {block.language!r} cannot be run; say bash, python, or why not"
    )


def test_no_block_escapes() -> None:
    """Every fence in the README belongs to a block, and the parser tells marks apart."""
    text = (ROOT / "README.md").read_text()
    assert len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) == 2 * len(BLOCKS) > 0
    example = "<!-- test: run -->\n\n```bash\ntrue\n```\n<!-- test: no — -->\n```bash\nfalse\n```\n"
    first, second = blocks(example)
    assert first.mark
    assert first.mark["kind"] == "run"
    assert second.mark is None, "a block that is not run needs a reason"


@pytest.mark.parametrize("block", marked("run"))
def test_block(block: Block, checkout: Path) -> None:
    execute(block, checkout, 120)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("block", marked("long"))
def test_long_block(block: Block, checkout: Path) -> None:
    execute(block, checkout, 1150)
