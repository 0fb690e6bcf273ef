"""The results table against arithmetic by hand, and the verdicts that follow from it."""

import json
import re
from statistics import mean, stdev

import pandas as pd
import pytest
from synthetic_results import LABELS, PARAMETERS, PRUNABLE, cost, setting, study, top1, write

from svite.report import tables
from svite.report.findings import duel, findings, verdict
from svite.report.results import Results
from svite.report.text import signed

METHODS = ["svite", "set", "gmp", "omp", "taylor"]
SEEDS, DENSITIES = (0, 1, 2), (0.6, 0.3, 0.1, 0.05)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results.read(write(tmp_path_factory.mktemp("study"), study()), study())


@pytest.fixture(scope="module")
def close(tmp_path_factory):
    """Two settings that only the highest sparsities tell apart."""
    asked = study(methods=("svite", "rigl"))
    return Results.read(write(tmp_path_factory.mktemp("close"), asked), asked)


def test_dense_comes_first_then_each_sparsity_in_the_studys_order(results):
    frame = tables.table(results)
    expected = [("dense", 0.0)] + [(m, s) for s in (0.4, 0.7, 0.9, 0.95) for m in METHODS]
    assert [*zip(frame["method"], frame["sparsity"], strict=True)] == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("density", DENSITIES)
def test_each_number_is_the_mean_over_seeds(results, method, density):
    frame = tables.table(results)
    row = frame[(frame["method"] == method) & (frame["density"] == density)].squeeze()
    values = [top1(method, density, seed) for seed in SEEDS]
    assert row["top1"] == pytest.approx(mean(values))
    assert row["top1_std"] == pytest.approx(stdev(values))
    assert row["top5"] == pytest.approx((99.6 + 99.9 + 99.9) / 3)
    assert row["nonzero"] == PARAMETERS - PRUNABLE + round(PRUNABLE * density)
    assert row["cost"] == pytest.approx(cost(method, density), abs=1e-4)
    assert row["seeds"] == 3


def test_cells_read_as_people_write_them(results):
    row = tables.rows(results)[1]
    assert {name: row[name] for name in tables.COLUMNS} == {
        "label": "SViTE", "sparsity": "40 %", "nonzero": "123,146", "top1": "96.6 ± 0.3",
        "top5": "99.8 ± 0.2", "cost": "0.60×",
    }  # fmt: skip


def test_the_best_of_each_sparsity_is_marked_and_dense_is_not(results):
    best = [(row["label"], row["sparsity"]) for row in tables.rows(results) if row["best"]]
    assert best == [("GMP", sparsity) for sparsity in ("40 %", "70 %", "90 %", "95 %")]


def test_nothing_is_marked_where_the_best_is_not_resolved_from_the_next(close):
    means = tables.table(close).groupby("density")["top1"].max()
    assert [top1("rigl", density, 1) for density in DENSITIES] == pytest.approx([means[d] for d in DENSITIES])
    best = [(row["label"], row["sparsity"]) for row in tables.rows(close) if row["best"]]
    assert best == [("rigl", "90 %"), ("rigl", "95 %")]
    assert tables.markdown(close).count("| **") == tables.html(close).count("<b>") == 2


def test_one_setting_alone_is_the_best_of_nothing(tmp_path):
    asked = study(methods=("svite",))
    assert not any(row["best"] for row in tables.rows(Results.read(write(tmp_path, asked), asked)))


def test_settings_that_share_no_seed_are_not_told_apart(tmp_path):
    asked = study(methods=("svite",), more=[setting("gmp", seeds=[7])], attention=False)
    assert not any(row["best"] for row in tables.rows(Results.read(write(tmp_path, asked), asked)))


def test_each_row_has_the_command_that_trains_it(results):
    commands = [row["command"] for row in tables.rows(results)]
    assert commands[0] == "dvc repro dense@dense-{0,1,2}"
    assert commands[1] == "dvc repro train@svite-0.6-{0,1,2}"
    assert commands[-1] == "dvc repro train@taylor-0.05-{0,1,2}"
    assert len(set(commands)) == len(commands)


def test_one_seed_has_no_spread(tmp_path):
    asked = study(seeds=(1,))
    results = Results.read(write(tmp_path, asked), asked)
    rows = tables.rows(results)
    assert (rows[0]["top1"], rows[0]["command"]) == ("97.2", "dvc repro dense@dense-1")
    assert "mean over 1 seed;" in tables.markdown(results)


def test_settings_with_options_have_rows_and_commands_of_their_own(tmp_path):
    more = [
        setting("svite", pool="uniform", densities=[0.3]) | {"label": "SViTE uniform"},
        setting("svite", fraction=0.3, densities=[0.3], seeds=[0, 1]) | {"label": "SViTE slow", "name": "it's slow"},
    ]
    asked = study(methods=("svite",), densities=(0.3, 0.1), more=more)
    rows = {row["label"]: row["command"] for row in tables.rows(Results.read(write(tmp_path, asked), asked))[:4]}
    assert rows["SViTE uniform"] == "dvc repro train@svite-0.3-{0,1,2}-pool-uniform"
    assert rows["SViTE slow"].count("train@it") == 2
    assert "{" not in rows["SViTE slow"]
    assert "1 seed" not in tables.markdown(Results.read(tmp_path, asked))
    assert "over 2 to 3 seeds" in tables.markdown(Results.read(tmp_path, asked))


def test_saved_files_say_the_same(results, tmp_path):
    tables.save(results, tmp_path)
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "results.csv"), tables.table(results).round(6), check_dtype=False
    )
    page = (tmp_path / "results.html").read_text()
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["rows"] == tables.rows(results)
    for row in saved["rows"]:
        assert f">{row['nonzero']}<" in page
        assert f">{row['top1']}<" in page
    assert page.count("<tr") == 1 + len(saved["rows"])
    assert "http" not in page
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tables.save(results, tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_paired_cells_are_bold_where_the_interval_leaves_out_zero(results, close):
    rows = {row["label"]: row["cells"] for row in tables.paired_rows(results, "SViTE")}
    assert set(rows) == {"SET", "GMP", "OMP", "Taylor"}
    assert rows["GMP"][0] == {"difference": "+0.20", "interval": "+0.04 to +0.36", "clear": True}
    (rigl,) = tables.paired_rows(close, "SViTE")
    assert rigl["cells"][1] == {"difference": "+0.10", "interval": "−0.01 to +0.21", "clear": False}
    assert rigl["cells"][3]["clear"]


@pytest.mark.parametrize(("points", "text"), [(-0.5, "−0.50"), (0.004, "0.00"), (-0.004, "0.00"), (1.2, "+1.20")])
def test_points_carry_their_sign(points, text):
    assert signed(points) == text


def test_readme_is_rewritten_between_its_marks_only(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n\n<!-- results -->\nold\n<!-- /results -->\n\nrest \\1\n")
    text = tables.update_readme(results, readme)
    assert text == readme.read_text()
    assert text.startswith("# Title\n\n<!-- results -->\n| Method |")
    assert text.endswith("<!-- /results -->\n\nrest \\1\n")
    assert "\nold\n" not in text
    assert len(re.findall(r"`dvc repro [^`]+` \|$", text, re.MULTILINE)) == 1 + 4 * 5
    assert "| GMP | 70 % | 62,954 | **96.0 ± 0.3** | 99.8 ± 0.2 | 0.53× |" in text
    assert tables.update_readme(results, readme) == text


def test_a_readme_without_marks_is_left_alone(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n")
    with pytest.raises(ValueError, match="no place for its tables"):
        tables.update_readme(results, readme)
    assert readme.read_text() == "# Title\n"


def test_findings_follow_from_the_numbers(results, close):
    facts = findings(results)
    assert facts["dense"]["mean"] == pytest.approx(97.2)
    assert [row["label"] for row in facts["best"]] == ["GMP"] * 4
    assert facts["best"][1]["against_dense"]["difference"] == pytest.approx(-1.2)
    assert [row["state"] for row in duel(results, "GMP", "SViTE")] == ["ahead"] * 4
    assert facts["verdict"] == "GMP beats SViTE at every sparsity compared."
    assert [row["state"] for row in duel(close, "rigl", "SViTE")] == ["level", "level", "ahead", "ahead"]
    near = {row["label"]: row["sparsity"] for row in facts["near"]}
    assert near == dict.fromkeys([LABELS[method] for method in METHODS], "40 %")
    assert {row["label"] for row in facts["itop"]} == {"SViTE", "SET"}
    assert facts["attention"][0]["uniform_bits"] == pytest.approx(5.6147, abs=1e-4)
    assert [row["epochs"] for row in facts["settings"] if row["group"] == "start"] == [7]
    assert facts["images"] == [15 * 3500]


@pytest.mark.parametrize(
    ("states", "says"),
    [
        (["ahead", "ahead"], "GMP beats SViTE at every sparsity compared."),
        (["behind", "behind"], "SViTE beats GMP at every sparsity compared."),
        (["level", "level"], "No difference between GMP and SViTE is resolved at any sparsity compared."),
        (
            ["behind", "ahead"],
            "GMP beats SViTE at 90 % sparsity; SViTE beats GMP at 40 %.",
        ),
        (["behind", "level"], "SViTE beats GMP at 40 % sparsity; no difference is resolved at 90 %."),
        ([], ""),
    ],
)
def test_the_verdict_has_a_wording_for_either_winner(states, says):
    rows = [{"sparsity": s, "state": state} for s, state in zip(("40 %", "90 %"), states, strict=False)]
    assert verdict(rows, "GMP", "SViTE") == says
