"""Figures of structured methods: what is drawn, where, and when; and the sentences that the numbers choose."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from structured_study import KEPT, SEEDS, asked, of_study, put, study, timed, unmeasured
from synthetic_results import LABELS, MACS, PARTS, macs, nonzero, speedup, top1, write_measured

from svite.report import gains, measured, structure, style
from svite.report.tokens import brightness_kept, selection

NAMES = ["structured_accuracy", "latency", "survivors", "kept_tokens"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def figures(results):
    return structure.figures(results)


def words(fig) -> list[str]:
    return [text.get_text() for text in fig.findobj(Text) if text.get_text()]


def markers(ax, method: str) -> list[tuple[float, float]]:
    """Where the markers of a method stand."""
    look = style.LOOKS[method]
    lines = [line for line in ax.lines if line.get_marker() == look.marker and line.get_color() == look.color]
    return [point for line in lines for point in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def test_every_figure_is_drawn_and_always_the_same(results, figures, tmp_path):
    assert list(figures) == structure.drawable(results) == NAMES
    again = structure.figures(results)
    for name in NAMES:
        one, two = (
            [path.read_bytes() for path in style.save(drawn[name], tmp_path / turn, name)]
            for turn, drawn in (("1", figures), ("2", again))
        )
        assert one == two


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"structured": ()}, []),
        ({"structured": ["vtp"]}, ["structured_accuracy", "latency"]),
        ({"structured": ["group"]}, ["structured_accuracy", "latency", "survivors"]),
        ({"structured": ["sviteplus"]}, ["structured_accuracy", "latency", "kept_tokens"]),
    ],
)
def test_what_the_study_does_not_have_is_not_drawn(results, given, names):
    assert structure.drawable(of_study(results, **given)) == names


def test_without_measured_times_there_is_no_figure_of_them(tmp_path):
    results = unmeasured(tmp_path)
    assert "latency" not in structure.drawable(results)
    write_measured(tmp_path, asked(structured=()))
    assert "latency" not in structure.drawable(results)


def test_a_method_or_kept_share_dropped_from_the_study_is_dropped_from_the_figures(results, figures):
    fewer = structure.figures(of_study(results, structured=["s2vite"], kept=[0.5]))
    for name in ("structured_accuracy", "latency"):
        assert {"VTP", "75 %"} <= set(words(figures[name]))
        assert not {"VTP", "75 %"} & set(words(fewer[name]))
    assert "S2ViTE\n75 % kept" in words(figures["survivors"])
    assert [word for word in words(fewer["survivors"]) if "kept" in word] == ["S2ViTE\n50 % kept"]


@pytest.mark.parametrize("method", PARTS)
def test_accuracy_stands_over_the_share_of_parameters_left(figures, method):
    ax = figures["structured_accuracy"].axes[0]
    means = {share: np.mean([top1(method, share, seed) for seed in SEEDS]) for share in KEPT}
    wanted = sorted((nonzero(method, share) / nonzero("dense", 1.0), mean) for share, mean in means.items())
    assert np.array(sorted(markers(ax, method))) == pytest.approx(np.array(wanted), abs=1e-4)
    dots = np.concatenate([dots.get_offsets()[:, 1] for dots in ax.collections if len(dots.get_offsets())])
    assert {top1(method, share, seed) for share in KEPT for seed in SEEDS} <= set(dots)


def test_reference_and_baseline_are_there_for_comparison(figures):
    ax = figures["structured_accuracy"].axes[0]
    assert markers(ax, "dense") == [(1, pytest.approx(97.2))]
    share = nonzero("svite", 0.6) / nonzero("dense", 1.0)
    assert markers(ax, "svite")[-1] == (pytest.approx(share), pytest.approx(96.6, abs=0.05))
    low, high = ax.get_xlim()
    assert 0.4 < low < share < 1 < high


def test_latency_has_every_model_at_its_operations_and_its_time(figures):
    counted, timed = figures["latency"].axes
    for method, share in (("vtp", 0.5), ("s2vite", 0.75), ("gmp", 0.1), ("set", 0.6)):
        mean = np.mean([top1(method, share, seed) for seed in SEEDS])
        for ax, x in ((counted, macs(method, share) / MACS), (timed, 1 / speedup(method, share, 64))):
            assert (pytest.approx(x, abs=1e-4), pytest.approx(mean)) in markers(ax, method)
    assert all(x == pytest.approx(1) for ax in (counted, timed) for x, _ in markers(ax, "omp"))
    spans = [span for lines in timed.collections for span in lines.get_segments()]
    faster = speedup("vtp", 0.5, 64)
    assert any(np.allclose(span[:, 0], [1 / (faster + 0.02), 1 / (faster - 0.02)]) for span in spans)
    assert "An Abacus" in " ".join(words(figures["latency"]))


def test_a_model_without_a_time_is_not_drawn(results, tmp_path):
    put(tmp_path / measured.LATENCY, timed(results, "dense-0", "vtp-0.5-0", "svite-0.6-0"))
    fig = structure.figures(unmeasured(tmp_path))["latency"]
    assert {len(markers(ax, "vtp")) for ax in fig.axes} == {1}
    assert not {"S2ViTE", "GMP"} & set(words(fig))


def test_bars_are_the_shares_alive_in_each_layer(results, figures):
    layers = results.structured_layers
    for ax, unit in zip(figures["survivors"].axes, ("attn.heads", "mlp.neurons"), strict=True):
        rows = layers[layers["unit"].str.endswith(unit)]
        wanted = rows.groupby(["method", "target_density", "unit"], sort=False)["achieved"].mean()
        bars = sorted((bar for bar in ax.patches if isinstance(bar, Rectangle)), key=lambda bar: bar.get_x())
        assert [bar.get_height() for bar in bars] == pytest.approx(list(wanted))
        assert len(bars) == 2 * 2 * 4
        assert to_rgb(bars[0].get_facecolor()[:3]) == to_rgb(style.LOOKS["s2vite"].color)


def test_a_hidden_layer_keeps_its_number(results):
    layers = structure.alive(results)
    assert set(layers["layer"]) == {1, 2, 3, 4}
    assert set(layers["part"]) == {"heads", "neurons"}
    assert set(layers["method"]) == {"s2vite", "group"}


def test_dropped_patches_are_shaded_and_only_those(results, figures):
    color = to_rgb(style.LOOKS["sviteplus"].color)
    for ax, kept in zip(figures["kept_tokens"].axes, selection(results).kept, strict=True):
        shaded = [p for p in ax.patches if p.get_fill() and to_rgb(p.get_facecolor()[:3]) == color]
        corners = {(round(4 * p.get_y()), round(4 * p.get_x())) for p in shaded}
        assert corners == set(zip(*np.nonzero(~kept.reshape(4, 4)), strict=True))
        assert ax.images[0].get_array().shape == (28 * 8, 28 * 8, 3)


def test_images_of_three_channels_are_drawn_in_colour(results, monkeypatch):
    monkeypatch.setitem(results.__dict__, "test", {"samples": results.test["samples"].repeat(3, 1)[:3]})
    fig = structure.figures(results)["kept_tokens"]
    assert [len(ax.images) for ax in fig.axes] == [1, 1, 1, 0, 0]
    assert fig.axes[0].images[0].get_array().shape == (224, 224, 3)


def test_brightness_is_counted_patch_by_patch():
    images = np.zeros((2, 1, 4, 4), np.uint8)
    images[0, 0, :2, :2], images[0, 0, 3, 3], images[1, 0, 0, 3] = 10, 20, 40
    kept = np.array([[True, False, False, False], [False, True, True, False]])
    assert brightness_kept(images, kept) == pytest.approx((40 + 40) / (40 + 20 + 40))


# Sentences


def test_findings_follow_from_the_numbers(results):
    facts = gains.findings(results)
    assert facts["labels"] == [LABELS[method] for method in PARTS]
    assert (facts["kept"], facts["images"], facts["figures"]) == (["75 %", "50 %"], [52500], NAMES)
    assert "With 50 % kept, S2ViTE (−1.20), Group sparsity (−0.70), VTP (−1.70) and SViTE+" in facts["accuracy"]
    assert facts["paired"][0]["cells"][1] == {"difference": "−1.20", "interval": "−1.80 to −0.60", "clear": True}
    assert "S2ViTE with 50 % kept is the fastest that was measured: 1.76 times" in facts["short"]
    assert facts["speed"] == (
        "At batch 64 the models with whole parts taken away run at 1.28 to 1.76 times the speed of dense; "
        "time saved over operations saved is 0.90."
    )
    assert facts["zeros"] == "Models of full size with zeros as weights run at 1.00 times the speed of dense."
    assert "Group sparsity leaves 75 % of the heads in layer 4 and 25 % in layer 1" in facts["survivors"]
    assert "S2ViTE leaves 50 % of the heads in each layer" in facts["survivors"]
    share = round(100 * brightness_kept(results.test["samples"], selection(results).kept))
    assert facts["tokens"] == f"The 50 % of the patches that stay hold {share} % of these images' brightness."


def test_what_was_not_measured_is_not_told(tmp_path):
    facts = gains.findings(unmeasured(tmp_path, structured=["vtp"]))
    assert {facts[name] for name in ("short", "speed", "zeros", "survivors", "tokens")} == {""}


@pytest.mark.parametrize(
    ("gap", "says"),
    [
        ((0.5, 0.1, 0.9), "VTP (+0.50) is more accurate than Dense"),
        ((-0.5, -0.9, -0.1), "VTP (−0.50) is less accurate than Dense"),
        ((-0.5, -1.1, 0.1), "no difference from Dense is resolved for VTP (−0.50)"),
    ],
)
def test_who_is_ahead_of_dense_has_a_wording_for_either(gap, says):
    assert gains.against_baseline({"VTP": gap}, "Dense") == says
    both = gains.against_baseline({"VTP": gap, "SViTE+": gap}, "Dense")
    assert f"{says[says.index('VTP') :].split(')')[0]}) and SViTE+" in both
    assert " is less" not in both
    assert " is more" not in both


def test_means_are_measured_by_the_line_at_as_many_parameters():
    rows = [("D", 1.0, 97.0), ("S", 0.5, 95.0), ("a", 0.75, 95.4), ("a", 0.5, 96.0), ("a", 0.2, 50.0)]
    frame = pd.DataFrame(rows, columns=["label", "nonzero_share", "top1"])
    said = gains.against_line(frame, ["a"], "D", "S")
    assert said.startswith("Measured by the line through D and the means of S, of 2 means")
    assert "1 lies below, by up to 0.6 points" in said
    assert "and 1 lies on it or above, by up to 1.0 points" in said
    assert gains.against_line(frame, ["a"], "D", None) == ""
    assert gains.against_line(frame[frame["nonzero_share"] != 0.75][:2], ["a"], "D", "S") == ""


def test_of_several_models_that_select_tokens_the_one_that_keeps_the_fewest_is_drawn(results):
    assert selection(results).label == "SViTE+"
    assert selection(results).kept.mean() == 0.5
    assert selection(of_study(results, structured=["vtp"])) is None
