"""The rules of the house: who may import what, what a bare installation can do, what is shipped."""

import ast
import functools
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("shifter", "jobs", "serve_app")
HEAVY = ("boto3", "onnx", "onnxruntime", "pyarrow", "ray", "torch")

WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in MISSING:
            return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

MISSING = frozenset(sys.argv.pop(1).split(","))
sys.meta_path[:] = map(Without, sys.meta_path)
"""


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def modules(*packages: str) -> list[str]:
    """Dotted names of every module of the given packages."""
    names = (path.relative_to(ROOT).with_suffix("").parts for path in sources(*packages))
    return [".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in names]


def python_without(
    missing: frozenset[str], code: str, *arguments: str, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` as if the named top-level modules were not installed."""
    command = [sys.executable, "-c", WITHOUT + code, ",".join(sorted(missing)), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@functools.cache
def not_in_core() -> frozenset[str]:
    """Top-level modules that an installation without extras does not have."""
    core: set[str] = set()
    left = ["shifter"]
    while left:
        name = canonical(left.pop())
        if name in core:
            continue
        core.add(name)
        for requirement in map(Requirement, metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return frozenset(
        module
        for module, owners in metadata.packages_distributions().items()
        if not core & {canonical(owner) for owner in owners}
    )


def shifter(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command ``shifter`` as an installation without extras runs it."""
    code = "sys.argv[0] = 'shifter'\nfrom jobs.__main__ import main\nsys.exit(main())"
    return python_without(not_in_core(), code, *arguments, cwd=cwd)


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_the_import_contracts_are_kept() -> None:
    outcome = lint_imports(ROOT)
    assert outcome.returncode == 0, outcome.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("shifter/pruning/__init__.py", "import torch", "need neither torch nor Ray"),
        ("shifter/switching/__init__.py", "from shifter.portfolio import pack", "value types and files"),
        ("shifter/store.py", "import jobs", "never the other way"),
        ("shifter/training/__init__.py", "import ray", "Ray is the shell's"),
        ("serve_app/__init__.py", "from shifter.models import build", "a service has no torch"),
    ],
)
def test_the_import_contracts_bite(tmp_path: Path, module: str, line: str, contract: str) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{line}\n")
    outcome = lint_imports(tmp_path)
    assert outcome.returncode != 0
    assert re.search(rf"{re.escape(contract)}.* BROKEN", outcome.stdout), outcome.stdout


def test_importing_shifter_needs_only_the_core_and_loads_nothing_heavy() -> None:
    code = "import shifter; shifter.Recipe; print(*{name.partition('.')[0] for name in sys.modules})"
    outcome = python_without(not_in_core(), code)
    assert outcome.returncode == 0, outcome.stderr
    assert not set(HEAVY) & set(outcome.stdout.split())


def test_a_store_in_a_folder_does_without_the_aws_sdk_and_one_in_a_bucket_says_that_it_does_not(
    tmp_path: Path,
) -> None:
    code = (
        "from shifter.store import Store\n"
        "store = Store.open(sys.argv[1])\n"
        "store.write('a', b'1')\n"
        "assert store.read('a') == b'1'\n"
        "Store.at('s3://bucket/runs')"
    )
    outcome = python_without(not_in_core(), code, str(tmp_path))
    assert "the store 's3://bucket/runs' needs boto3: pip install 'shifter[train]'" in outcome.stderr
    assert (tmp_path / "a").exists()


def test_reducing_packing_and_switching_run_without_torch_and_ray() -> None:
    with_torch = ("shifter.data", "shifter.models", "shifter.training", "shifter.switching.torch_")
    others = [module for module in modules("shifter") if not module.startswith(with_torch)]
    code = "\n".join(f"import {module}" for module in others)
    outcome = python_without(frozenset({"torch", "torchvision", "ray"}), code)
    assert outcome.returncode == 0, outcome.stderr


def test_a_service_is_loaded_without_torch() -> None:
    code = "\n".join(f"import {module}" for module in modules("serve_app"))
    outcome = python_without(frozenset({"torch", "torchvision", "onnxscript", "sklearn"}), code)
    assert outcome.returncode == 0, outcome.stderr


def test_a_node_is_calibrated_without_torch_ray_and_the_onnx_library(portfolio_path: Path) -> None:
    arguments = ["calibrate", str(portfolio_path), "--samples", "10", "--batch-limit", "1", "--threads", "1"]
    code = f"sys.argv[1:] = {arguments!r}\nfrom jobs.__main__ import main\nmain()"
    missing = frozenset(
        {"torch", "torchvision", "ray", "onnx", "onnx_ir", "onnxscript", "pyarrow", "sklearn"}
    )
    outcome = python_without(missing, code)
    assert outcome.returncode == 0, outcome.stderr
    assert list(portfolio_path.parent.glob("*.calibration.json"))


def test_nothing_lazy_is_promised_that_is_not_there() -> None:
    import shifter

    assert all(getattr(shifter, name) is not None for name in shifter.__all__)
    with pytest.raises(AttributeError, match="it has Portfolio, Recipe"):
        shifter.Potrfolio  # noqa: B018


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_no_file_names_a_machine_or_a_registry() -> None:
    """Paths below someone's home, and hosts that packages were fetched from."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    private = re.compile(
        r"(?<![\w.~-])/(?:root|home|Users|work)/\w|files\.python(?:hosted)|registry\.npm(?:js)|deb\.debian"
        r"|pypi\.org/(?:simple)"
    )
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in listed.splitlines()
        if (ROOT / name).is_file()
        for number, line in enumerate((ROOT / name).read_text(errors="replace").splitlines(), 1)
        if private.search(line)
    ]
    assert not found


def test_every_declared_dependency_is_pinned_by_name_and_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.+!]+", line) for line in lines)
    assert lines == sorted(lines)
    pins = dict(line.split("==") for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for requirement in map(Requirement, [*project["dependencies"], *(r for extra in extras for r in extra)]):
        pin = pins[canonical(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement} is pinned to {pin}"


def test_every_import_is_of_a_declared_dependency() -> None:
    """Nothing works only because another package happens to bring it along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    requirements = [*project["dependencies"], *(r for extra in extras for r in extra)]
    declared = {canonical(Requirement(r).name) for r in requirements}
    declared |= {"botocore", "pydantic-core", "starlette"}  # parts of boto3, pydantic and fastapi
    owners = metadata.packages_distributions()
    undeclared = set()
    for path in [*sources(*PACKAGES, "tests"), ROOT / "conftest.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.partition(".")[0] for name in names} & owners.keys() - {*PACKAGES, "tests"}:
                if not declared & {canonical(owner) for owner in owners[top]}:
                    undeclared.add(f"{path.relative_to(ROOT)}: {top}")
    assert not undeclared


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the project, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, folder / "source" / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    build = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, folder], cwd=folder / "source", check=True, timeout=120)
    (packed,) = folder.glob("*.whl")
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_a_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    for package in PACKAGES:
        here = {p.relative_to(ROOT) for p in (ROOT / package).rglob("*") if p.is_file()}
        there = {p.relative_to(wheel) for p in (wheel / package).rglob("*") if p.is_file()}
        assert {p for p in here if "__pycache__" not in p.parts} == there
    assert {p.name for p in wheel.iterdir() if not p.name.endswith(".dist-info")} == set(PACKAGES)


def test_the_command_from_a_wheel_reads_well_without_extras(wheel: Path) -> None:
    outcome = shifter("--help", cwd=wheel)
    assert outcome.returncode == 0, outcome.stderr
    for job in ("generate", "inspect", "calibrate", "demo"):
        assert job in outcome.stdout


@pytest.mark.parametrize("job", ["generate", "inspect", "calibrate", "demo"])
def test_each_job_has_a_help_without_extras(job: str) -> None:
    outcome = shifter(job, "--help")
    assert outcome.returncode == 0, outcome.stderr
    assert "Usage" in outcome.stdout


def test_a_job_that_lacks_its_extra_names_it_and_leaves_nothing(tmp_path: Path) -> None:
    store = tmp_path / "store"
    outcome = shifter("generate", "jobs/recipes/digits.yaml", "--store", str(store))
    assert outcome.returncode != 0
    assert "shifter[train" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not store.exists()
