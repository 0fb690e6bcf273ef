"""The committed results are those of the study in params.yaml, and the README's table is the one that they make."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from svite.params.study import HALF, load
from svite.report import tables
from svite.report.results import Results
from svite.train import budget

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_agrees_with_the_results():
    results = Results.read(ROOT, grid=load(ROOT / "params.yaml").grid.model_dump())
    start, end = tables.MARKS
    between = (ROOT / "README.md").read_text(encoding="utf-8").split(start)[1].split(end)[0]
    assert between.strip() == tables.markdown(results), "rewrite it with svite.report.tables.update_readme"


STUDY = load(ROOT / "params.yaml")


def metrics(key: str) -> dict:
    return json.loads((ROOT / f"metrics/train/{key}.json").read_text())


def test_every_run_has_the_epochs_and_the_model_that_params_yaml_asks_for():
    for run in STUDY.grid.runs(model=STUDY.model, recipe=STUDY.recipe):
        found = metrics(run.key)
        assert found["epochs"] == budget.epochs(run, run.method in STUDY.grid.pretrained)
        before = metrics(f"{HALF}-{run.seed}")["images_seen"] if run.method in STUDY.grid.pretrained else 0
        assert found["images_charged"] == found["images_seen"] + before
        assert found["parameters"] == metrics("dense-0")["parameters"]


def test_every_method_is_charged_for_as_many_images():
    charged = {metrics(run.key)["images_charged"] for run in STUDY.grid.runs(model=STUDY.model, recipe=STUDY.recipe)}
    assert len(charged) == 1


def test_dense_reaches_97_percent_on_validation_images():
    scores = [metrics(f"dense-{seed}")["validation_top1"] for seed in STUDY.grid.seeds]
    assert len(scores) == 3
    assert sum(scores) / len(scores) >= 97


def test_committed_tables_are_those_of_the_committed_results(tmp_path):
    tables.save(Results.read(ROOT, grid=STUDY.grid.model_dump()), tmp_path)
    for made in tmp_path.iterdir():
        assert made.read_bytes() == (ROOT / "reports/tables" / made.name).read_bytes(), (
            f"run `make figures` ({made.name})"
        )


@pytest.mark.skipif(not shutil.which("pdftotext"), reason="needs poppler-utils")
def test_the_committed_report_reads_as_its_tables():
    text = subprocess.run(
        ["pdftotext", "-layout", ROOT / "reports/report.pdf", "-"], capture_output=True, text=True
    ).stdout
    flat = " ".join(text.split())
    for row in json.loads((ROOT / "reports/tables/results.json").read_text())["rows"]:
        assert row["nonzero"] in flat
        assert row["top1"] in flat
    assert f"{STUDY.recipe.epochs} epochs" in flat
