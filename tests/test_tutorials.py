"""Tutorials run from top to bottom, on a small model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks/tutorials"


def executed(tutorial: str, place: Path, **settings: object) -> list[dict]:
    """The outputs of a tutorial, run with these parameters."""
    given = [word for name, value in settings.items() for word in ("-p", name, str(value))]
    papermill = [sys.executable, "-m", "papermill", FOLDER / f"{tutorial}.ipynb", place / "out.ipynb", "-k", "python3"]
    done = subprocess.run([*papermill, *given], cwd=FOLDER, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    cells = json.loads((place / "out.ipynb").read_text())["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


@pytest.mark.slow
@pytest.mark.xdist_group("deploy")
def test_the_tutorial_on_fast_models_runs_and_draws(tmp_path):
    outputs = executed("fast", tmp_path, name="test_vit", batch=2, folder=tmp_path, models=tmp_path)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert "the paper: 0.09" in "".join(outputs[-1]["text"])
    assert (tmp_path / "sparse.safetensors").exists()


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_the_tutorial_on_several_processes_shows_how_they_go_on(tmp_path):
    outputs = executed("scale", tmp_path, epochs=2, folder=tmp_path)
    said = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    assert said.startswith("train: 3,500 images of 10 classes\nvalidation: 500 images of 10 classes\n")
    assert [line.split("  ")[0] for line in said.splitlines() if line.startswith("epoch")][:2] == [
        "epoch 1/2",
        "epoch 2/2",
    ]
    assert "svite-0.3-0: validation " in said
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert (tmp_path / "models" / "svite-0.3-0.safetensors").exists()
