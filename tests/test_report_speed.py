"""The speed card: its table, its figure, and nothing where it was not measured."""

import json

import pytest
from matplotlib.colors import to_rgb
from synthetic_results import CARD, WAYS, study, write, write_measured

from svite.report import measured, speed, style


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_measured(write(tmp_path_factory.mktemp("study"), study(methods=())), study(methods=()))


def test_a_row_a_model_and_runtime(folder):
    rows = speed.rows(folder)
    assert [(row["model"], row["runtime"]) for row in rows] == list(WAYS)
    assert rows[4] == {
        "model": "90% sparse", "runtime": "svite.deploy", "speed_1": "3.25×", "speed_8": "3.25×", "speed_64": "3.25×",
        "milliseconds": "31", "images": "32.5", "peak": "12", "stored": "27.1", "limit": "50 %",
    }  # fmt: skip


def test_nothing_was_measured_and_nothing_is_drawn(tmp_path):
    assert speed.rows(tmp_path) == []
    assert speed.figures(tmp_path) == {}
    assert measured.saved_of_deit(tmp_path) == ""


def test_the_figure_has_a_point_a_sparsity_and_a_bar_a_model(folder):
    left, right = speed.figures(folder)["speed"].axes
    lines = [line for line in left.lines if len(line.get_xdata()) == 2 and line.get_marker() in list("os^")]
    assert [list(line.get_xdata()) for line in lines] == [[80, 90]] * 3
    assert [list(line.get_ydata()) for line in lines] == [[2.0, 3.25]] * 3
    named = [text.get_text() for text in left.get_legend().get_texts()]
    assert {"batch 1", "batch 8", "batch 64", "dense, OpenVINO", "ideal: 1 / density"} == set(named)
    assert [bar.get_width() for bar in right.patches] == [50] * 5
    names = [label.get_text() for label in right.get_yticklabels()]
    assert names == ["90% sparse", "80% sparse", "dense, svite.deploy", "dense, OpenVINO", "dense, eager"]
    assert to_rgb(right.patches[0].get_facecolor()[:3]) == to_rgb(style.BLUE)


def test_the_figure_has_the_same_bytes_each_time(folder, tmp_path):
    one, two = (
        [path.read_bytes() for path in style.save(speed.speed(folder), tmp_path / turn, "speed")] for turn in "12"
    )
    assert one == two


def test_claims_are_told_where_they_belong(folder):
    about = {part: measured.verdict(folder, getattr(measured, part)) for part in ("SINGLE", "OVERHEAD")}
    assert [row["name"] for row in about["SINGLE"]["rows"]] == [
        "Layer of 1536 x 384, 1536 tokens, 80% sparse", "Deploying DeiT-Small, 80% sparse, batch 8",
    ]  # fmt: skip
    assert "in 1 of 2 cases; it fails for: deploying DeiT-Small" in about["SINGLE"]["verdict"]
    assert len(about["OVERHEAD"]["rows"]) == 2
    assert measured.saved_of_deit(folder) == "0.90 to 0.90"


def test_a_card_of_an_earlier_version_is_no_card(folder, tmp_path):
    path = tmp_path / measured.BENCH
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"claims": []}))
    assert measured.card(tmp_path).empty
    assert len(measured.card(folder)) == len(CARD)
