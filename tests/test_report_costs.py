"""The cost table and the claims against arithmetic by hand, with and without a benchmark's files."""

import json

import numpy as np
import pandas as pd
import pytest
from structured_study import of_study, put, study, timed, unmeasured
from synthetic_results import DENSE_TIMES, LABELS, MACS, PARTS, macs, nonzero, speedup

from svite.report import costs, measured, tables

CLAIM = {"name": "inference of A", "unit": "x the speed of dense", "value": 2.0, "interval": [1.9, 2.1]}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study"))


@pytest.mark.parametrize("method", ["svite", "gmp", *PARTS])
def test_each_cost_is_the_mean_over_seeds(results, method):
    frame = costs.costs(results).set_index(["label", "kept"]).loc[LABELS[method]]
    for kept, row in frame.iterrows():
        assert row["nonzero"] == nonzero(method, kept)
        assert row["macs_share"] == pytest.approx(macs(method, kept) / MACS)
        for batch, milliseconds in DENSE_TIMES.items():
            faster = speedup(method, kept, batch)
            assert row[f"speedup_{batch}"] == faster
            assert row[f"time_{batch}"] == pytest.approx(1 / faster)
            assert row[f"milliseconds_{batch}"] == pytest.approx(milliseconds / faster, abs=1e-3)


def test_time_saved_over_operations_saved(results):
    frame = costs.costs(results).set_index(["label", "kept"])
    row = frame.loc["S2ViTE", 0.5]  # a tenth of the time at batch 64 is not operations, and half of it at batch 1
    assert (row["saved_1"], row["saved_64"]) == (pytest.approx(0.5, abs=1e-3), pytest.approx(0.9, abs=1e-3))
    assert frame.loc["SViTE", "saved_64"].isna().all()  # no operations are saved by zeros


def test_rows_are_the_baseline_then_the_reference_then_what_is_taken_away_whole(results):
    rows = costs.rows(results)
    labels = list(dict.fromkeys(row["label"] for row in rows))
    assert labels == ["Dense", "SViTE", "S2ViTE", "Group sparsity", "VTP", "SViTE+"]
    assert {name: rows[4][name] for name in rows[4] if name != "color"} == {
        "label": "S2ViTE", "kept": "50 %", "nonzero": "103,082", "macs": "1.82 M", "bytes": "421 kB",
        "batch_1": {"milliseconds": "0.68", "speedup": "1.32×"},
        "batch_64": {"milliseconds": "6.82", "speedup": "1.76×"}, "deployed": "3.52×", "top1": "96.0 ± 0.3",
        "command": "dvc repro train@s2vite-0.5-{0,1,2}",
    }  # fmt: skip
    assert "one seed, measured on An Abacus, 1 thread; deployed: the speed" in costs.note(results)


def test_what_was_not_measured_has_a_dash(results, tmp_path):
    fewer = unmeasured(tmp_path)
    assert {row["batch_64"]["milliseconds"] for row in costs.rows(fewer)} == {"–"}
    assert costs.note(fewer).endswith("No time was measured: `make bench` does it.")
    some = timed(results, "dense-0", "vtp-0.5-0")
    del some["models"]["vtp-0.5-0"]["1"]
    put(tmp_path / measured.LATENCY, some)
    cells = {(row["label"], row["kept"]): row for row in costs.rows(fewer)}
    assert cells["VTP", "50 %"]["batch_64"] == {"milliseconds": "6.82", "speedup": "1.76×"}
    assert cells["VTP", "50 %"]["batch_1"] == cells["VTP", "75 %"]["batch_64"] == {"milliseconds": "–", "speedup": ""}


def test_a_time_of_another_network_of_that_name_is_left_out(results, tmp_path):
    fewer, others = unmeasured(tmp_path), timed(results, "dense-0", "vtp-0.5-0", "vtp-0.75-0")
    others["models"]["vtp-0.75-0"]["macs"] += 1
    put(tmp_path / measured.LATENCY, others)
    frame = costs.costs(fewer).set_index(["label", "kept"])
    assert frame.loc[("VTP", 0.5), "speedup_64"] > 1
    assert np.isnan(frame.loc[("VTP", 0.75), "speedup_64"])


def test_a_study_whose_seeds_are_others_takes_the_first_that_was_timed(tmp_path):
    assert costs.costs(study(tmp_path, seeds=(2, 0)))["speedup_64"].notna().all()


def test_saved_tables_say_the_same_and_never_change(results, tmp_path):
    tables.save(results, tmp_path)
    saved = json.loads((tmp_path / "costs.json").read_text())
    assert saved == {"rows": costs.rows(results), "note": costs.note(results)}
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "costs.csv"), costs.costs(results).round(6), check_dtype=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tables.save(results, tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_without_whole_parts_tables_are_what_they_were(results, tmp_path):
    tables.save(of_study(results, structured=()), tmp_path)
    assert json.loads((tmp_path / "structure.json").read_text()) == {"labels": [], "figures": [], "tokens": ""}
    assert json.loads((tmp_path / "costs.json").read_text())["rows"] == []
    assert not (tmp_path / "costs.csv").exists()
    tables.save(results, tmp_path / "both")
    for name in ("results.csv", "results.html", "results.json", "paired.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "both" / name).read_bytes()


def test_only_claims_about_smaller_models_are_told(results):
    found = measured.verdict(results.folder, measured.STRUCTURE)
    assert len(found["rows"]) == 5
    assert all(row["name"].startswith(("Inference of", "Training of")) for row in found["rows"])
    assert found["rows"][0] == {
        "name": "Inference of DeiT-Small, half of the heads and neurons, batch 8", "unit": "× the speed of dense",
        "value": "2.12", "interval": "2.07 to 2.17", "asked": "at least 2", "holds": "yes",
    }  # fmt: skip
    assert [row["asked"] for row in found["rows"]] == ["at least 2", "at least 0.8", "at least 3", "–", "at most 1.02"]
    assert [row["holds"] for row in found["rows"]] == ["yes", "yes", "no", "–", "yes"]


@pytest.mark.parametrize(
    ("holds", "says"),
    [
        ([True, True], "What was asked for holds in all 2 cases, with the whole interval."),
        ([True, False], "in 1 of 2 cases; it fails for: inference of A."),
        ([False], "in 0 of 1 cases; it fails for: inference of A."),
        ([None], ""),
        ([], ""),
    ],
)
def test_the_verdict_counts_what_holds(tmp_path, holds, says):
    put(tmp_path / measured.BENCH, {"claims": [CLAIM | {"holds": held} for held in holds]})
    verdict = measured.verdict(tmp_path, measured.STRUCTURE)["verdict"]
    assert verdict.endswith(says)
    assert bool(verdict) == bool(says)


@pytest.mark.parametrize("content", ['{"models": ', "[]", "3", "[" * 100_000])
def test_nothing_measured_is_no_error_and_a_broken_file_is(tmp_path, content):
    assert measured.verdict(tmp_path, measured.STRUCTURE) == {"rows": [], "verdict": ""}
    assert measured.machine(tmp_path) == ""
    assert len(measured.latencies(tmp_path)) == 0
    (tmp_path / measured.LATENCY).parent.mkdir()
    (tmp_path / measured.LATENCY).write_text(content)
    with pytest.raises(ValueError, match=r"latency\.json can't be read .*: `make bench` writes it again\."):
        measured.latencies(tmp_path)


def test_threads_are_counted(tmp_path):
    put(tmp_path / measured.LATENCY, {"machine": {"processor": "P", "threads": 2}, "models": {}})
    assert measured.machine(tmp_path) == "P, 2 threads"


def test_the_readme_gets_a_row_and_a_command_for_each_structured_setting(results):
    lines = costs.markdown(results).splitlines()
    settings = results.structured["label"].nunique() * results.structured["density"].nunique()
    assert len([line for line in lines if line.startswith("| ")]) == 2 + settings  # the head and dense
    assert lines[-3].endswith("`dvc repro train@sviteplus-0.5-{0,1,2}` |")
    assert lines[2].startswith("| Dense | 100 % |")
