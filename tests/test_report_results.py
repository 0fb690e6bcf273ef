"""What is read, what is left lying, and what is said when a file is missing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from synthetic_results import LABELS, PARTS, setting, study, write

from svite.params.run import METHODS
from svite.report.results import Results, target
from svite.report.style import LOOKS, looks

REPORT = Path(__file__).parents[1] / "svite/report"
SMALL = {"methods": ("svite", "gmp", "omp"), "densities": (0.3, 0.05), "seeds": (0, 1)}
WHOLE = {"densities": (0.3,), "seeds": (0, 1), "structured": PARTS}


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path, study(**SMALL))


def test_each_run_knows_the_stage_that_trains_it():
    targets = {target(planned) for planned in study(**WHOLE).runs}
    assert {"dense@dense-1", "dense@half-0", "train@svite-0.3-0", "train@omp-0.3-1", "train@vtp-0.5-1"} <= targets
    assert {"dense@large-dense-0", "train@large-svite-0.6-0"} <= targets


def test_what_is_taken_away_whole_stands_apart_and_leaves_the_others_as_they_were(tmp_path):
    write(tmp_path, study(**WHOLE))
    both, plain = (Results.read(tmp_path, study(**WHOLE | given)) for given in ({}, {"structured": ()}))
    for frame in ("runs", "epochs", "updates", "layers"):
        pd.testing.assert_frame_equal(getattr(both, frame), getattr(plain, frame))
    assert (both.labels, both.densities) == (plain.labels, plain.densities)
    assert both.structured_labels == [LABELS[method] for method in PARTS]
    assert set(both.structured.columns) == set(both.runs.columns)
    assert set(both.structured_layers["method"]) == set(PARTS)
    assert len(plain.structured) == len(plain.structured_layers) == 0
    assert both.gap("S2ViTE", "Dense", 0.5).difference == pytest.approx(-1.16, abs=0.05)
    assert plain.gap("S2ViTE", "Dense", 0.5) is None


def test_runs_that_others_start_from_have_epochs_and_no_result(folder):
    results = Results.read(folder, study(**SMALL))
    assert "Dense, half budget" in set(results.epochs["label"])
    assert "Dense, half budget" not in set(results.runs["label"])
    assert list(results.attention["label"]) == ["Dense, larger", "SViTE, larger"]


@pytest.mark.parametrize("given", [{"densities": (0.3,)}, {"methods": ("gmp", "omp")}, {"seeds": (1,)}])
def test_what_the_study_drops_is_gone_though_its_files_lie_there(folder, given):
    asked = SMALL | given
    results = Results.read(folder, study(**asked))
    for frame in (results.runs, results.updates, results.layers):
        assert set(frame["method"]) - {"dense"} <= {*asked["methods"]}
    assert set(results.paired["label"]) == {LABELS[method] for method in asked["methods"]}
    assert set(results.densities) == set(asked["densities"])
    assert set(results.layers["target_density"]) == set(results.paired["density"]) == set(asked["densities"])
    assert set(results.epochs["seed"]) == set(asked["seeds"])


def test_frames_know_the_run_of_each_row(folder):
    results = Results.read(folder, study(**SMALL))
    assert len(results.runs) == 2 + 3 * 2 * 2
    assert results.labels == ["SViTE", "GMP", "OMP"]
    assert results.densities == [0.3, 0.05]
    row = results.epochs[results.epochs["key"] == "gmp-0.05-1"].iloc[0]
    assert tuple(row[["label", "method", "group", "target_density", "seed", "epoch"]]) == (
        "GMP", "gmp", "weights", 0.05, 1, 1,
    )  # fmt: skip
    assert row["density"] > 0.5  # what the run had then, not what it was asked to end with


def test_two_settings_of_a_method_stand_apart(tmp_path):
    asked = study(**SMALL, more=[setting("svite", pool="uniform") | {"label": "SViTE uniform"}])
    results = Results.read(write(tmp_path, asked), asked)
    assert results.labels == ["SViTE", "GMP", "OMP", "SViTE uniform"]
    assert len(results.of("SViTE")) == len(results.of("SViTE uniform")) == 4
    assert results.gap("SViTE uniform", "SViTE", 0.3).difference == 0
    assert results.looks["SViTE"] == LOOKS["svite"]
    one, other = results.looks["SViTE"], results.looks["SViTE uniform"]
    assert one.color != other.color
    assert one.marker != other.marker


def test_looks_differ_however_many_settings_there_are():
    more = [setting("svite", fraction=share / 100) | {"label": f"SViTE {share}"} for share in range(1, 40)]
    found = looks(study(more=more))
    assert len({look.color for look in found.values()}) == len({look.marker for look in found.values()}) == len(found)
    fewer = looks(study(more=more[:3]))
    assert all(found[label] == look for label, look in fewer.items() if label.startswith("SViTE") and "," not in label)


def test_seeds_that_a_setting_shares_are_compared(tmp_path):
    asked = study(**SMALL, more=[setting("set", seeds=[1, 2]), setting("rigl", label="RigL", seeds=[7])])
    results = Results.read(write(tmp_path, asked), asked)
    assert results.gap("SET", "Dense", 0.3) is not None
    assert set(results.paired["label"]) == {"SViTE", "GMP", "OMP", "SET"}
    assert "RigL" in results.labels


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("metrics/data.json", "data"),
        ("metrics/test/svite-0.3-1.json", "evaluate@svite-0.3-1"),
        ("metrics/train/svite-0.3-1.json", "train@svite-0.3-1"),
        ("metrics/train/dense-0.json", "dense@dense-0"),
        ("metrics/train/large-svite-0.6-0.json", "train@large-svite-0.6-0"),
        ("curves/epochs/half-1.csv", "dense@half-1"),
        ("curves/updates/gmp-0.05-0.csv", "train@gmp-0.05-0"),
        ("curves/layers/omp-0.3-0.csv", "train@omp-0.3-0"),
        ("arrays/test.safetensors", "data"),
        ("arrays/runs/gmp-0.05-1.safetensors", "evaluate@gmp-0.05-1"),
    ],
)
def test_a_missing_file_is_named_with_the_stage_that_makes_it(folder, name, stage):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        _ = Results.read(folder, study(**SMALL)).paired
    assert str(error.value) == f"{folder / name} is missing: `dvc repro {stage}` makes it."


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("metrics/test/dense-0.json", "evaluate@dense-0"),
        ("arrays/runs/dense-0.safetensors", "evaluate@dense-0"),
        ("arrays/test.safetensors", "data"),
    ],
)
def test_a_truncated_file_is_named(folder, name, stage):
    path = folder / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=rf"{name} can't be read .*`dvc repro {stage}` makes it again\."):
        _ = Results.read(folder, study(**SMALL)).paired


def test_predictions_of_other_images_are_refused(folder, tmp_path):
    from safetensors.numpy import load_file, save_file

    path = folder / "arrays/runs/svite-0.3-1.safetensors"
    save_file({"predictions": load_file(path)["predictions"][:10].copy()}, path)
    with pytest.raises(ValueError, match=r"svite-0\.3-1 was tested on other images: `dvc repro evaluate@svite"):
        _ = Results.read(folder, study(**SMALL)).paired


def test_a_study_is_by_default_that_of_the_folder(folder):
    import json

    (folder / "params.yaml").write_text(json.dumps(study(**SMALL).model_dump(mode="json", exclude_defaults=True)))
    assert Results.read(folder).labels == ["SViTE", "GMP", "OMP"]


def test_results_comparisons_and_the_report_need_no_torch():
    code = (
        "import sys; from svite.report import build, compare, results\n"
        "assert build.report and results.Results.read and compare.compare\n"
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


NAMED = re.compile(r"(?<!\w)(S2?ViTE\+?|SET|GMP|OMP|Taylor|RigL|S?NIP|SRigL|VTP)(?!\w)")
WORDS = {"group", "layer", "block", "set"}  # methods that are called as other things are, too


@pytest.mark.parametrize("path", sorted(REPORT.glob("*.py")), ids=lambda path: path.stem)
def test_code_names_no_method_but_for_its_look(path):
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)
    }
    found = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts
    ]
    named = {text for text in found if text in {*METHODS} - WORDS or NAMED.search(text)}
    assert named == ({*LOOKS} & ({*METHODS} - WORDS) if path.stem == "style" else set())
