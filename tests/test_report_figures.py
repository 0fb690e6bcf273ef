"""Figures: the same bytes every time, what the grid says, and curves that are what they claim."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from synthetic_results import fraction, setting, study, top1, write

from svite.report import figures, style
from svite.report.results import Results
from svite.sparsity.schedule import cubic

NAMES = [name for name in figures.__all__ if name != "save"]
SMALL = {"methods": ("svite", "set", "gmp", "omp"), "densities": (0.3, 0.1)}
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("study"), study(**SMALL))


def read(folder: Path, **changes: object) -> Results:
    return Results.read(folder, study(**SMALL | changes))


def draw(name: str, folder: Path, **changes: object) -> Figure:
    return figures.cycle() if name == "cycle" else getattr(figures, name)(read(folder, **changes))


def words(fig: Figure) -> list[str]:
    return [text.get_text() for text in fig.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_always_gives_the_same_bytes_and_speaks_for_itself(name, folder, tmp_path):
    first, second = (
        [path.read_bytes() for path in figures.save(draw(name, folder), tmp_path / str(turn), name)] for turn in (0, 1)
    )
    assert first == second
    assert first[0].startswith(b"<?xml")
    assert first[1].startswith(b"\x89PNG")
    assert b"http" not in first[1]
    said = words(draw(name, folder))
    assert not any(unit in text.lower() for text in said for unit in ("second", "minute", "(s)", "hour"))
    assert len(max(said, key=len)) > 40  # says what it shows


def test_bytes_depend_on_no_setting_of_the_readers(folder, tmp_path):
    (tmp_path / "matplotlibrc").write_text("font.family: monospace\nlines.linewidth: 7\nsvg.fonttype: none\n")
    asked = study(**SMALL).model_dump(mode="json", exclude_defaults=True)
    code = (
        "import sys; from svite.report import figures; from svite.report.results import Results\n"
        f"from svite.params.study import Study; results = Results.read({str(folder)!r}, Study.of(**{asked!r}))\n"
        "for name in ('accuracy', 'layers'): figures.save(getattr(figures, name)(results), sys.argv[1], name)"
    )
    made = []
    for seed, home in (("1", tmp_path), ("2", Path.cwd())):
        out = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", code, out], check=True, cwd=home,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path.cwd())},
        )  # fmt: skip
        made.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert made[0] == made[1]
    assert len(made[0]) == 4


def test_a_sparsity_dropped_from_the_study_is_dropped_from_the_figure(folder):
    assert "90 %" in words(draw("accuracy", folder))
    assert "90 %" not in words(draw("accuracy", folder, densities=(0.3,)))


def test_a_setting_dropped_from_the_study_is_dropped_from_every_figure(folder):
    for name in ("accuracy", "cost", "training", "layers", "topology"):
        assert "SET" in words(draw(name, folder))
        assert "SET" not in words(draw(name, folder, methods=("svite", "gmp")))


def test_the_accuracy_line_is_the_mean_and_the_dots_are_the_seeds(folder):
    ax = draw("accuracy", folder).axes[0]
    line = next(line for line in ax.lines if line.get_color() == style.LOOKS["svite"].color)
    means = [np.mean([top1("svite", d, seed) for seed in SEEDS]) for d in SMALL["densities"]]
    assert line.get_ydata() == pytest.approx(means)
    dots = np.concatenate([dots.get_offsets()[:, 1] for dots in ax.collections if len(dots.get_offsets()) > 1])
    expected = {top1(m, d, s) for m in ("svite", "set", "gmp", "omp") for d in SMALL["densities"] for s in range(3)}
    assert expected <= set(dots)


def test_the_band_is_the_t_interval_of_the_mean():
    import pandas as pd

    frame = pd.DataFrame({"density": [0.3] * 3 + [0.1], "top1": [96.0, 97.0, 98.0, 90.0]})
    bands = style.band(frame, "density", "top1")
    wide = 4.302653 * 1.0 / np.sqrt(3)
    assert tuple(bands.loc[0.3, ["low", "high"]]) == pytest.approx((97 - wide, 97 + wide))
    assert tuple(bands.loc[0.1, ["low", "high"]]) == (90.0, 90.0)


def test_methods_differ_in_colour_and_in_marker():
    looks = list(style.LOOKS.values())
    assert len({look.color for look in looks}) == len({look.marker for look in looks}) == len(looks)


def test_a_marker_may_be_a_symbol(folder, monkeypatch):
    """Which matplotlib takes for a marker, and for no format string."""
    for method in SMALL["methods"]:
        monkeypatch.setitem(style.LOOKS, method, style.Look("#123456", r"$\boxplus$"))
    results = read(folder)
    drawn = figures.draw(results, *figures.drawable(results))
    assert {"accuracy", "cost", "layers", "drop_fraction"} <= drawn.keys()
    markers = {line.get_marker() for figure in drawn.values() for line in figure.findobj(Line2D)}
    assert r"$\boxplus$" in markers


def test_two_settings_of_a_method_are_two_lines(tmp_path):
    asked = study(**SMALL, more=[setting("svite", pool="uniform") | {"label": "SViTE uniform"}])
    results = Results.read(write(tmp_path, asked), asked)
    for name in ("accuracy", "cost", "training", "layers", "topology"):
        assert {"SViTE", "SViTE uniform"} <= set(words(figures.draw(results, name)[name]))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8), st.floats(0.1, 10))
def test_names_are_moved_apart_and_keep_their_order(wanted, gap):
    placed = style.spread(wanted, gap)
    order = np.argsort(wanted, kind="stable")
    assert np.all(np.diff(np.array(placed)[order]) >= gap - 1e-6)
    assert np.mean(placed) == pytest.approx(np.mean(wanted), abs=1e-6)
    far = np.diff(np.sort(wanted)) > gap
    if far.all():
        assert placed == pytest.approx(wanted)


def test_gradual_pruning_halves_the_model_where_the_paper_says(folder):
    ax = draw("gradual", folder).axes[0]
    guides = sorted(line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":")
    assert guides == pytest.approx([23.7, 45.0, 69.7, 100.0], abs=0.05)
    assert {"2×", "4×", "8×", "10×", "to 90 %"} <= set(words(ax.figure))


def test_logged_gradual_pruning_is_drawn_from_its_first_update_to_its_last(folder):
    ax = draw("gradual", folder).axes[0]
    logged = [line for line in ax.lines if line.get_marker() == style.LOOKS["gmp"].marker]
    for line, final in zip(logged, (0.7, 0.9), strict=True):
        done, sparsity = line.get_xdata(), line.get_ydata()
        assert (done[0], done[-1]) == (0, 100)
        ramp = cubic(sparsity[0], final, end=1000)
        assert sparsity == pytest.approx([ramp(round(10 * share)) for share in done], abs=0.01)


def test_drop_fractions_are_the_papers_and_the_released_codes(folder):
    ax = draw("drop_fraction", folder).axes[0]
    paper, released, rest = ax.lines[:3]
    at = [0, 400, 800, 1000]
    assert paper.get_ydata()[at] == pytest.approx([0.5, 0.25, 0.0, 0.0])
    both = np.concatenate([released.get_ydata(), rest.get_ydata()])
    assert both[[0, 500, 800, 1000]] == pytest.approx([0.5, 0.2525, 0.0523, 0.005], abs=5e-5)
    logged = next(line for line in ax.lines if line.get_marker() == "o")
    assert logged.get_ydata() == pytest.approx(fraction(logged.get_xdata() / 100))


def test_a_figure_with_nothing_logged_is_not_made(folder):
    still = read(folder, methods=("omp",), attention=False)
    assert list(figures.draw(still, *NAMES)) == ["accuracy", "cost", "layers", "training"]
    assert not set(figures.draw(read(folder, methods=()), *NAMES)) - {"attention", "attention_shared"}


def test_what_was_asked_of_layers_is_drawn_where_it_differs_between_them(folder):
    assert "Asked" in words(draw("layers", folder))
    results = read(folder)
    results.layers.loc[:, "target"] = 0.3
    assert "Asked" not in words(figures.layers(results))


def test_training_curves_are_charged_for_the_dense_half(folder):
    ax = draw("training", folder).axes[0]
    curves = {line.get_label(): line.get_xdata() for line in ax.lines}
    assert curves["OMP"].min() > curves["Dense, half budget"].max() == pytest.approx(7 * 3.5)
    assert curves["OMP"].max() == pytest.approx(15 * 3.5)


@pytest.mark.parametrize(("name", "bars"), [("attention", 0), ("attention_shared", 1)])
def test_each_head_has_its_map_with_the_centre_outlined(folder, name, bars):
    fig = draw(name, folder)
    dense, svite = fig.axes[:2]
    assert len(fig.axes) == 2 + bars
    for ax in (dense, svite):
        assert len(ax.images) == 36
        assert {image.get_cmap().name for image in ax.images} == {"Oranges"}
        outlines = [patch.get_bbox() for patch in ax.findobj(Rectangle) if patch.get_width() == pytest.approx(1 / 7)]
        assert len(outlines) == 36
        assert (outlines[0].x0, outlines[0].y0) == pytest.approx((3 / 7, 3 / 7))
        assert not ax.axison
    tops = {image.norm.vmax for ax in (dense, svite) for image in ax.images}
    assert len(tops) == (1 if bars else 72)
    assert {"Dense, larger", "SViTE, larger at 40 % sparsity", "Layer 6", "Head 6"} <= set(words(fig))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_models_is_drawn_side_by_side_up_to_four(tmp_path, count):
    dense = {"method": "dense", "group": "attention", "seeds": [1, 0]}
    asked = study(
        more=[{"label": f"D{i}", "name": f"d{i}", **dense} for i in range(count)], attention=False, methods=()
    )
    for name in ("attention", "attention_shared"):
        said = words(figures.draw(Results.read(write(tmp_path, asked), asked), name)[name])
        assert [text for text in said if text in ("D0", "D1", "D2", "D3", "D4")] == ["D0", "D1", "D2", "D3"][:count]


@pytest.mark.parametrize("name", ["accuracy", "attention"])
def test_drawing_leaves_no_setting_behind(name, folder):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw(name, folder)
    assert dict(mpl.rcParams) == before
