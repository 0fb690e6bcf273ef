"""The report builds whole, alone, twice the same, and says what the metrics say."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_results import GRID, LOSS, STRUCTURED, write, write_measured

from svite.report import build, figures, speed, structure, tables
from svite.report.results import Results

ROOT = Path(__file__).resolve().parents[1]
NAMES = [name for name in figures.__all__ if name != "save"]
SMALL = {"scratch": ["svite", "gmp"], "pretrained": ["omp"], "densities": [0.3, 0.1], "seeds": [0, 1]}


def study(folder: Path, grid: dict = SMALL, measured: bool = False) -> Path:
    """A folder with everything that a report is built from; the figures are stand-ins."""
    write(folder, grid)
    if measured:
        write_measured(folder, grid)
    for name in ("reports/report.typ", "params.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    results = Results.read(folder, grid=grid)
    (folder / "reports/figures").mkdir()
    for name in [*NAMES, *structure.drawable(results), *speed.figures(folder)]:
        svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
        (folder / f"reports/figures/{name}.svg").write_text(svg)
    tables.save(results, folder / "reports/tables")
    return folder


def text_of(folder: Path) -> str:
    """The report's text, as a browser would show it."""
    page = build.report(folder, folder / "out")[1].read_text()
    body = re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+([.,;:)])", r"\1", re.sub(r"\s+", " ", body.replace("\xa0", " ")))


class Loads(HTMLParser):
    """What a page would fetch to show itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "link", "iframe", "object", "embed"):
            self.found.append(tag)
        self.found += [given[name] for name in ("src", "srcset", "poster") if name in given]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study"))


def test_both_forms_are_built_and_always_the_same(folder, tmp_path):
    first, second = (build.report(folder, tmp_path / name) for name in ("one", "two"))
    assert [path.name for path in first] == ["report.pdf", "report.html"]
    assert first[0].read_bytes().startswith(b"%PDF-")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["report.html", "report.pdf"]


def test_the_page_stands_alone(folder, tmp_path):
    page = build.report(folder, tmp_path)[1].read_text()
    loads = Loads()
    loads.feed(page)
    assert len(loads.found) == len(NAMES)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in loads.found)
    assert not re.search(r"@import|url\(", page)


def test_every_figure_says_which_notebook_made_it(folder, tmp_path):
    page = build.report(folder, tmp_path)[1].read_text()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    assert len(captions) == len(NAMES) + 5  # and five tables
    assert all(re.search(r"notebooks/\d\d_\w+\.ipynb", caption) for caption in captions)


def test_the_report_says_what_the_metrics_say(folder):
    text = text_of(folder)
    assert "it is right on 97.1 % of 1,000 test images" in text
    for row in json.loads((folder / "reports/tables/results.json").read_text())["rows"]:
        assert f"{row['method']} {row['sparsity']} {row['nonzero']} {row['top1']}" in text
    assert json.loads((folder / "reports/tables/findings.json").read_text())["verdict"] in text


def test_another_metric_is_another_number(tmp_path):
    folder = study(tmp_path)
    path = folder / "metrics/test.json"
    test = json.loads(path.read_text())
    test["dense-0"]["top1"] = test["dense-1"]["top1"] = 88.88
    path.write_text(json.dumps(test))
    tables.save(Results.read(folder, grid=SMALL), folder / "reports/tables")
    assert "it is right on 88.9 % of 1,000 test images" in text_of(folder)


@pytest.mark.parametrize(
    ("shift", "says", "not_says"),
    [
        (+5, "Gradual magnitude pruning beats SViTE at every sparsity tried.", "sparse all along is more accurate"),
        (-5, "SViTE beats gradual magnitude pruning at every sparsity tried.", "starts dense and is pruned as it"),
        (0, "No difference between gradual magnitude pruning and SViTE is resolved", "is more accurate than"),
    ],
)
def test_the_report_names_the_winner_whoever_it_is(tmp_path, shift, says, not_says):
    folder = study(tmp_path)
    path = folder / "metrics/paired.json"
    rows = json.loads(path.read_text())
    for row in rows:
        if (row["method"], row["against"]) == ("gmp", "svite"):
            row.update(difference=shift, low=shift - 1, high=shift + 1)
    path.write_text(json.dumps(rows))
    tables.save(Results.read(folder, grid=SMALL), folder / "reports/tables")
    text = text_of(folder)
    assert says in text
    assert not_says not in text


@pytest.mark.parametrize(
    "grid",
    [
        {"scratch": ["set"], "pretrained": [], "densities": [0.3], "seeds": [0]},
        {"scratch": ["gmp"], "pretrained": ["taylor"], "densities": [0.5], "seeds": [0, 1]},
        {"scratch": ["svite"], "pretrained": ["omp"], "densities": [0.3, 0.1], "seeds": [0]},
        GRID,
    ],
)
def test_other_grids_build_too(tmp_path, grid):
    text = text_of(study(tmp_path, grid))
    assert ("Does gradual pruning beat SViTE?" in text) == ({"svite", "gmp"} <= set(grid["scratch"]))
    assert ("its dense model trains for half" in text) == bool(grid["pretrained"])


WHOLE = SMALL | {"structured": STRUCTURED["structured"], "kept": STRUCTURED["kept"]}


def test_heads_neurons_and_tokens_have_a_section(tmp_path):
    folder = study(tmp_path, WHOLE, measured=True)
    text = text_of(folder)
    facts = json.loads((folder / "reports/tables/structure.json").read_text())
    for part in ("accuracy", "short", "line", "speed", "zeros", "survivors", "tokens"):
        assert facts[part] in text
    for row in json.loads((folder / "reports/tables/costs.json").read_text())["rows"]:
        times = [f"{row[batch]['milliseconds']} {row[batch]['speedup']}" for batch in ("batch_1", "batch_64")]
        cells = [
            row["method"],
            row["kept"],
            row["nonzero"],
            row["macs"],
            row["bytes"],
            *times,
            row["deployed"],
            row["top1"],
        ]
        assert " ".join(cells) in text
    assert "time saved over operations saved is 0.09 there" in text
    assert "section 8 says what that does not show" in text
    assert "nothing here says that any of these models runs faster" not in text
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", (folder / "out/report.html").read_text(), re.DOTALL)
    assert len(captions) == len(NAMES) + 5 + 4 + 3 + 3 + 1  # four figures and three tables more, and the speed card's
    assert sum("make bench" in caption for caption in captions) == 4


def test_a_claim_that_fails_is_told_as_plainly_as_one_that_holds(tmp_path):
    text = text_of(study(tmp_path, WHOLE, measured=True))
    assert "half of the heads and neurons, batch 8 × the speed of dense 2.12 2.07 to 2.17 at least 2 yes" in text
    assert "batch 8: time saved over MACs saved 0.90 0.85 to 0.95 at least 0.8 yes" in text
    assert "layers 4, 7, 10, batch 8 × the speed of dense 2.90 2.85 to 2.95 at least 3 no" in text
    assert "in 3 of 4 cases; it fails for: inference of DeiT-Small, half of the heads and neurons, tokens" in text


def test_without_measurements_the_section_says_so(tmp_path):
    text = text_of(study(tmp_path, WHOLE))
    assert "Heads, neurons and tokens" in text
    assert "No time was measured: `make bench` does it." in text
    assert "Speed of larger models" not in text


def test_without_structured_methods_there_is_no_such_section(tmp_path):
    text = text_of(study(tmp_path, SMALL, measured=True))
    assert "Heads, neurons and tokens" not in text
    assert "section 7 says what that does not show" in text
    assert "are not part of this study" in text
    assert "nothing here says that any of these models runs faster" in text


@pytest.mark.parametrize("methods", [["s2vite"], ["vtp"], ["sviteplus"], ["layer"]])
def test_each_structured_method_alone_makes_a_report(tmp_path, monkeypatch, methods):
    monkeypatch.setitem(LOSS, "layer", 1.0)
    grid = SMALL | {"scratch": ["set"], "structured": methods, "kept": [0.5]}
    text = text_of(study(tmp_path, grid, measured=True))
    assert ("Which tokens are kept" in text) == (methods == ["sviteplus"])
    assert ("Which heads and neurons survive" in text) == (methods == ["s2vite"])


def test_a_missing_figure_is_named_and_no_report_is_left(tmp_path):
    folder = study(tmp_path)
    (folder / "reports/figures/cost.svg").unlink()
    with pytest.raises(ValueError, match=r"cost\.svg.*dvc repro figures") as error:
        build.report(folder, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_warning_of_the_template_is_an_error(tmp_path):
    folder = study(tmp_path)
    template = folder / build.TEMPLATE
    template.write_text(template.read_text() + '\n#text(font: "No Such Font")[x]\n')
    with pytest.raises(ValueError, match=r"(?i)no such font"):
        build.report(folder, tmp_path / "out")
