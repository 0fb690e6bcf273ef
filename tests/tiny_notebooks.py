"""Tiny projects of notebooks, and `python -m svite.pipeline.notebooks run` in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from svite.pipeline import plan

ROOT = Path(__file__).parents[1]
PARAMS = """
data: data
model: {name: vit_tiny_patch16_224, img_size: 28}
recipe: {lr: 1e-3}
seeds: [0]
settings:
  - {label: Dense, method: dense}
  - {label: SViTE, method: svite, densities: [0.5], pool: uniform}
"""
PARAMETERS = "folder = 'scratch'\nlr = 0.1  # a comment\nfast, name = False, 'x'\nmodel = {}"
RUN = f"{PARAMETERS}\nmethod, density, seed, options, recipe = '', 1.0, 0, {{}}, {{}}"


def notebook(*sources: str, parameters: str = PARAMETERS) -> dict:
    """A notebook as JupyterLab might leave it: random ids, another kernel, counts, outputs."""
    cells = [("parameters", parameters), *((None, source) for source in sources)]
    return {
        "cells": [
            {
                "cell_type": "code",
                "id": os.urandom(4).hex(),
                "metadata": {"tags": [tag] if tag else [], "jupyter": {"source_hidden": False}},
                "source": source.splitlines(keepends=True),
                "execution_count": 7,
                "outputs": [{"output_type": "stream", "name": "stdout", "text": "old\n"}],
            }
            for tag, source in cells
        ],
        "metadata": {"kernelspec": {"name": "conda-env-mine", "display_name": "Mine"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def make(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, which becomes the working directory."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("notebooks").mkdir()
    Path("params.yaml").write_text(PARAMS)
    plan.write_plan()
    return place


def save(name: str, *sources: str, **options: str) -> None:
    Path(f"notebooks/{name}.ipynb").write_text(json.dumps(notebook(*sources, **options)))


def start(*arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "svite.pipeline.notebooks", "run", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)


def run(*arguments: str) -> tuple[int, str, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def executed(key: str) -> list[dict]:
    return json.loads(Path(f"reports/notebooks/{key}.ipynb").read_text())["cells"]


def text(key: str) -> str:
    """All that the executed notebook's cells printed."""
    outputs = [output for cell in executed(key) for output in cell["outputs"]]
    return "".join(output.get("text", "") for output in outputs)
