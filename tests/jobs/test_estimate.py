"""What a dry run tells of images on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from jobs.__main__ import app


def test_images_that_are_skipped_are_counted_and_otherwise_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIFTER_CACHE", str(tmp_path / "cache"))
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)):
        path = tmp_path / "set/train" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "set/train/a/bad.png").write_bytes(b"x")
    recipe = {
        "name": "folders",
        "model": {"name": "vgg", "stages": [[8], [8]]},
        "data": {"name": "image_folder", "folder": str(tmp_path / "set"), "size": 8},
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
        "pruning": {"ratios": [2]},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))

    refused = CliRunner().invoke(app, ["generate", str(file), "--dry-run"])
    assert refused.exit_code == 1
    assert "a/bad.png, image" in refused.stderr
    assert "set data.bad_rows to skip" in refused.stderr
    told = CliRunner().invoke(app, ["generate", str(file), "--dry-run", "--set", "data.bad_rows=skip"])
    assert told.exit_code == 0, told.stderr
    assert "32 to train on, 4 to validate, 4 to test, 1 skipped" in told.stdout
