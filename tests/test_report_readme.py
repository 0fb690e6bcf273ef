"""The committed results are those of the study in params.yaml, and the README's table is the one that they make."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from svite.params.run import DENSE
from svite.params.study import load
from svite.report import tables
from svite.report.results import Results

ROOT = Path(__file__).resolve().parents[1]
STUDY = load(ROOT / "params.yaml")


def test_the_readme_agrees_with_the_results():
    start, end = tables.MARKS
    between = (ROOT / "README.md").read_text(encoding="utf-8").split(start)[1].split(end)[0]
    assert between.strip() == tables.markdown(Results.read(ROOT)), "rewrite it with svite.report.tables.update_readme"


def metrics(key: str) -> dict:
    return json.loads((ROOT / f"metrics/train/{key}.json").read_text())


def test_every_run_has_the_epochs_and_the_model_that_params_yaml_asks_for():
    for planned in STUDY.among("weights", "structures"):
        found = metrics(planned.key)
        assert found["epochs"] == planned.run.recipe.epochs
        before = metrics(planned.start)["images_seen"] if planned.start else 0
        assert found["images_charged"] == found["images_seen"] + before
        assert found["parameters"] == metrics("dense-0")["parameters"]


def test_every_setting_is_charged_for_as_many_images():
    runs = STUDY.among("weights", "structures")
    assert len({metrics(planned.key)["images_charged"] for planned in runs}) == 1


def test_dense_reaches_97_percent_on_validation_images():
    dense = [planned.key for planned in STUDY.among("weights") if planned.run.method == DENSE]
    scores = [metrics(key)["validation_top1"] for key in dense]
    assert len(scores) == 3
    assert sum(scores) / len(scores) >= 97


def test_committed_tables_are_those_of_the_committed_results(tmp_path):
    tables.save(Results.read(ROOT), tmp_path)
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
