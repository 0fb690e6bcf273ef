"""Tutorials run from top to bottom, on a small model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks/tutorials"


@pytest.mark.slow
@pytest.mark.xdist_group("deploy")
def test_the_tutorial_on_fast_models_runs_and_draws(tmp_path):
    settings = {"name": "test_vit", "batch": 2, "folder": tmp_path, "models": tmp_path}
    given = [word for name, value in settings.items() for word in ("-p", name, str(value))]
    command = [
        sys.executable,
        "-m",
        "papermill",
        FOLDER / "fast.ipynb",
        tmp_path / "out.ipynb",
        "-k",
        "python3",
        *given,
    ]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert "the paper: 0.09" in "".join(outputs[-1]["text"])
    assert (tmp_path / "sparse.safetensors").exists()
