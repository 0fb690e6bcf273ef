"""What is read, what is left lying, and what is said when a file is missing."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from synthetic_results import STRUCTURED, write

from svite.report.results import Results, halves_of, runs_of, structured_of

WHOLE = STRUCTURED | {"densities": [0.3], "seeds": [0, 1]}
GRID = {"scratch": ["svite", "gmp"], "pretrained": ["omp"], "densities": [0.05, 0.3], "seeds": [0, 1]}


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path, GRID)


def test_the_grid_says_which_runs_there_are():
    keys = [run.key for run in runs_of(GRID | {"seeds": [2]})]
    assert keys == [
        "dense-2", "svite-0.3-2", "svite-0.05-2", "gmp-0.3-2", "gmp-0.05-2", "omp-0.3-2", "omp-0.05-2",
    ]  # fmt: skip


def test_each_run_knows_the_stage_that_makes_it():
    targets = [run.target for run in [*runs_of(GRID), *halves_of(GRID)]]
    assert {"dense@1", "sparse@svite-0.3-0", "prune@omp-0.05-1", "half@0"} <= set(targets)


def test_structured_runs_have_a_grid_and_a_stage_of_their_own():
    runs = list(structured_of(WHOLE | {"structured": ["s2vite", "vtp"], "seeds": [2]}))
    assert [run.key for run in runs] == ["s2vite-0.75-2", "s2vite-0.5-2", "vtp-0.75-2", "vtp-0.5-2"]
    assert runs[1].target == "structure@s2vite-0.5-2"
    assert list(structured_of(GRID)) == []
    assert {run.method for run in runs_of(WHOLE)} == {"dense", "svite", "set", "gmp", "omp", "taylor"}


def test_structured_runs_stand_apart_and_leave_the_others_as_they_were(tmp_path):
    write(tmp_path, WHOLE)
    both, plain = (Results.read(tmp_path, grid=WHOLE | given) for given in ({}, {"structured": [], "kept": []}))
    for frame in ("runs", "epochs", "updates", "layers"):
        pd.testing.assert_frame_equal(getattr(both, frame), getattr(plain, frame))
    assert (both.methods, both.densities) == (plain.methods, plain.densities)
    assert list(both.structured["key"].unique()) == [run.key for run in structured_of(WHOLE)]
    assert set(both.structured.columns) == set(both.runs.columns)
    assert set(both.structured_layers["method"]) == set(WHOLE["structured"])
    assert len(plain.structured) == len(plain.structured_layers) == 0
    assert both.gap("s2vite", "dense", 0.5).difference == pytest.approx(-1.16, abs=0.05)
    assert plain.gap("s2vite", "dense", 0.5) is None


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("metrics/train/vtp-0.5-1.json", "structure@vtp-0.5-1"),
        ("curves/layers/group-0.75-0.csv", "structure@group-0.75-0"),
        ("arrays/tokens.safetensors", "evaluate"),
    ],
)
def test_a_missing_file_of_a_structured_run_is_named(tmp_path, name, stage):
    (write(tmp_path, WHOLE) / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        _ = Results.read(tmp_path, grid=WHOLE).tokens
    assert str(error.value) == f"{tmp_path / name} is missing: `dvc repro {stage}` makes it."


def test_half_budget_runs_exist_only_for_methods_that_need_them():
    assert halves_of(GRID | {"pretrained": []}) == []


@pytest.mark.parametrize("given", [{"densities": [0.3]}, {"scratch": ["gmp"]}, {"seeds": [1]}])
def test_what_the_grid_drops_is_gone_though_its_files_lie_there(folder, given):
    grid = GRID | given
    results = Results.read(folder, grid=grid)
    for frame in (results.runs, results.updates, results.layers, results.paired):
        assert set(frame["method"]) - {"dense"} <= {*grid["scratch"], *grid["pretrained"]}
    assert set(results.paired["against"]) <= {"dense", *grid["scratch"]}
    assert set(results.densities) == set(grid["densities"])
    assert set(results.layers["target_density"]) == set(results.paired["density"]) == set(grid["densities"])
    assert set(results.epochs["seed"]) == set(grid["seeds"])


def test_frames_know_the_run_of_each_row(folder):
    results = Results.read(folder, grid=GRID)
    assert len(results.runs) == 2 + 3 * 2 * 2
    assert results.methods == ["svite", "gmp", "omp"]
    assert results.densities == [0.3, 0.05]
    row = results.epochs[results.epochs["key"] == "gmp-0.05-1"].iloc[0]
    assert (row["method"], row["target_density"], row["seed"], row["epoch"]) == ("gmp", 0.05, 1, 1)
    assert row["density"] > 0.5  # what the run had then, not what it was asked to end with


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("metrics/data.json", "data"),
        ("metrics/test.json", "evaluate"),
        ("metrics/paired.json", "evaluate"),
        ("metrics/train/svite-0.3-1.json", "sparse@svite-0.3-1"),
        ("metrics/train/dense-0.json", "dense@0"),
        ("curves/epochs/half-1.csv", "half@1"),
        ("curves/updates/gmp-0.05-0.csv", "sparse@gmp-0.05-0"),
        ("curves/layers/omp-0.3-0.csv", "prune@omp-0.3-0"),
    ],
)
def test_a_missing_file_is_named_with_the_stage_that_makes_it(folder, name, stage):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        Results.read(folder, grid=GRID)
    assert str(error.value) == f"{folder / name} is missing: `dvc repro {stage}` makes it."


@pytest.mark.parametrize("name", ["arrays/attention.safetensors", "metrics/train/pair-svite.json"])
def test_a_missing_part_of_the_pair_is_named_when_it_is_needed(folder, name):
    (folder / name).unlink()
    results = Results.read(folder, grid=GRID)
    with pytest.raises(FileNotFoundError, match=name):
        _ = results.pair, results.attention


@pytest.mark.parametrize("name", ["metrics/test.json", "arrays/attention.safetensors"])
def test_a_truncated_file_is_named(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"{name} can't be read .*`dvc repro evaluate` makes it again\."):
        _ = Results.read(folder, grid=GRID).attention


def test_a_run_that_was_never_tested_is_named(folder):
    tested = json.loads((folder / "metrics/test.json").read_text())
    del tested["svite-0.3-1"]
    (folder / "metrics/test.json").write_text(json.dumps(tested))
    with pytest.raises(ValueError, match=r"test\.json has no run svite-0\.3-1: `dvc repro evaluate`"):
        Results.read(folder, grid=GRID)


def test_the_report_needs_no_torch():
    code = (
        "import sys; from svite.report import build, compare, figures, structure, tables\n"
        "assert figures.accuracy and build.report and tables.save\n"
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
