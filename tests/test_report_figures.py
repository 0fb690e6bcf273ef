"""Figures: the same bytes every time, what the grid says, and curves that are what they claim."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from synthetic_results import GRID, fraction, top1, write

from svite.report import figures, schedules, style
from svite.report.results import Results

NAMES = [name for name in figures.__all__ if name != "save"]
SMALL = GRID | {"pretrained": ["omp"], "densities": [0.3, 0.1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("study"))


def draw(name: str, folder: Path, grid: dict = SMALL) -> Figure:
    return figures.cycle() if name == "cycle" else getattr(figures, name)(Results.read(folder, grid=grid))


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
    code = (
        "import sys; from svite.report import figures; from svite.report.results import Results\n"
        f"results = Results.read({str(folder)!r}, grid={SMALL!r})\n"
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


def test_a_sparsity_dropped_from_the_grid_is_dropped_from_the_figure(folder):
    assert "90 %" in words(draw("accuracy", folder))
    assert "90 %" not in words(draw("accuracy", folder, SMALL | {"densities": [0.3]}))


def test_a_method_dropped_from_the_grid_is_dropped_from_every_figure(folder):
    for name in ("accuracy", "cost", "training", "layers", "topology"):
        assert "SET" in words(draw(name, folder))
        assert "SET" not in words(draw(name, folder, SMALL | {"scratch": ["svite", "gmp"]}))


def test_the_accuracy_line_is_the_mean_and_the_dots_are_the_seeds(folder):
    ax = draw("accuracy", folder).axes[0]
    line = next(line for line in ax.lines if line.get_color() == style.look("svite").color)
    means = [np.mean([top1("svite", d, seed) for seed in GRID["seeds"]]) for d in SMALL["densities"]]
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
    looks = [style.look(name) for name in style.LOOKS if name != "half"]
    assert len({look.color for look in looks}) == len({look.marker for look in looks}) == len(looks)
    assert style.look("of my own") == style.look("of my own")


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
    steps = np.array([23.7, 45.0, 69.7, 100.0])
    assert schedules.cubic(0.9, steps / 100) == pytest.approx([0.5, 0.75, 0.875, 0.9], abs=1e-3)
    ax = draw("gradual", folder).axes[0]
    guides = sorted(line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":")
    assert guides == pytest.approx(steps, abs=0.05)
    assert {"2×", "4×", "8×", "10×"} <= set(words(ax.figure))


def test_measured_gradual_pruning_lies_on_the_computed_curve(folder):
    ax = draw("gradual", folder).axes[0]
    logged = [line for line in ax.lines if line.get_marker() == style.look("gmp").marker]
    assert len(logged) == 2
    for line, final in zip(logged, (0.7, 0.9), strict=True):
        assert line.get_ydata() == pytest.approx(schedules.cubic(final, line.get_xdata() / 100), abs=0.01)


def test_the_ramp_is_the_one_that_gmp_has():
    from svite.methods.gmp import gmp

    defaults = {name: given.default for name, given in inspect.signature(gmp).parameters.items()}
    assert (defaults["begin"], defaults["until"]) == schedules.RAMP
    assert schedules.ramp(np.array([5, 10, 45, 80, 90]), 100) == pytest.approx([0, 0, 0.5, 1, 1])


def test_drop_fractions_are_the_papers_and_the_released_codes(folder):
    share = np.array([0.0, 0.4, 0.8, 1.0])
    assert schedules.cosine(share) == pytest.approx([0.5, 0.25, 0.0, 0.0])
    assert schedules.floored(np.array([0.0, 0.5, 0.8, 1.0])) == pytest.approx([0.5, 0.2525, 0.0523, 0.005], abs=5e-5)
    ax = draw("drop_fraction", folder).axes[0]
    logged = next(line for line in ax.lines if line.get_marker() == "o")
    assert logged.get_ydata() == pytest.approx(fraction(logged.get_xdata() / 100))


def test_a_grid_without_gmp_or_svite_still_shows_the_computed_schedules(folder):
    grid = {"scratch": ["set"], "pretrained": [], "densities": [0.3], "seeds": [0]}
    assert "2×" in words(draw("gradual", folder, grid))
    assert "paper" in "".join(words(draw("drop_fraction", folder, grid)))


def test_training_curves_are_charged_for_the_dense_half(folder):
    ax = draw("training", folder).axes[0]
    curves = {line.get_label(): line.get_xdata() for line in ax.lines}
    assert curves["OMP"].min() > curves["Dense, half budget"].max() == pytest.approx(7 * 3.5)
    assert curves["OMP"].max() == pytest.approx(2 * 7 * 3.5)


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
    assert {"Dense", "SViTE at 40 % sparsity", "Layer 6", "Head 6"} <= set(words(fig))


@pytest.mark.parametrize("name", ["accuracy", "attention"])
def test_drawing_leaves_no_setting_behind(name, folder):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw(name, folder)
    assert dict(mpl.rcParams) == before
