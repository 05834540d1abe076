import subprocess
import sys
from pathlib import Path

SERVE = """
import sys
import numpy as np
from shifter.portfolio import Portfolio
from shifter.switching.initialise import initialise
from shifter.switching.policies import Slo

with initialise(Portfolio.open(sys.argv[1]), Slo(0.05), dwell=0.0) as host:
    host.tick()
    with host.request() as request:
        answer = request.submit(np.zeros((1, 1, 6, 6), np.float32)).result()
assert answer.logits.shape == (1, 3), answer
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""

ASK = """
import sys
from shifter.switching.engines import make_engine

assert "torch" not in sys.modules
make_engine("torch")
print(*(name for name in ("torch", "ray", "onnx") if name in sys.modules))
"""


PROVIDERS = """
import sys
import shifter.switching.providers

print(*(name for name in sys.modules if name.startswith(("shifter.switching.", "pydantic"))))
"""


def test_a_module_loads_what_it_needs_and_not_the_simulator() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROVIDERS], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["shifter.switching.providers"]


def test_torch_is_loaded_where_it_is_asked_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["torch"]


def test_a_process_that_serves_loads_neither_torch_nor_ray(package: bytes, tmp_path: Path) -> None:
    path = tmp_path / "portfolio.zip"
    path.write_bytes(package)
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"onnxruntime", "shifter"} <= loaded
    assert loaded.isdisjoint({"torch", "ray", "onnx", "sklearn", "pyarrow"})
