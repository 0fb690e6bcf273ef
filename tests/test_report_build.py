"""The report builds whole, alone, twice the same, and says what the metrics say."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import synthetic_results
from synthetic_results import PARTS, predict, setting, write, write_measured

from svite.params.study import Study
from svite.report import build, figures, speed, structure, tables
from svite.report.results import Results

ROOT = Path(__file__).resolve().parents[1]
NAMES = [name for name in figures.__all__ if name != "save"]
SMALL = {"methods": ("svite", "gmp", "omp"), "densities": (0.3, 0.1), "seeds": (0, 1)}
WHOLE = SMALL | {"structured": PARTS}
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'


def made(folder: Path, asked: Study, measured: bool = False, classes: int = 10) -> Path:
    """A study's folder with everything that a report is built from; the figures are stand-ins."""
    write(folder, asked, classes)
    if measured:
        write_measured(folder, asked)
    build.skeleton(folder)
    results = Results.read(folder, asked)
    (folder / "reports/figures").mkdir(exist_ok=True)
    for name in ["cycle", *figures.drawable(results), *structure.drawable(results), *speed.figures(folder)]:
        (folder / f"reports/figures/{name}.svg").write_text(SVG)
    tables.save(results, folder / "reports/tables")
    return folder


def study(folder: Path, measured: bool = False, classes: int = 10, **asked: object) -> Path:
    """The same in a repository that has nothing else."""
    (folder / "reports").mkdir(parents=True, exist_ok=True)
    (folder / build.TEMPLATE).write_bytes((ROOT / build.TEMPLATE).read_bytes())
    return made(folder, synthetic_results.study(**asked), measured, classes)


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
    return study(tmp_path_factory.mktemp("study"), **SMALL)


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
        assert f"{row['label']} {row['sparsity']} {row['nonzero']} {row['top1']}" in text
    assert json.loads((folder / "reports/tables/findings.json").read_text())["verdict"] in text


def test_another_metric_is_another_number(tmp_path):
    folder = study(tmp_path, **SMALL)
    for seed in SMALL["seeds"]:
        path = folder / f"metrics/test/dense-{seed}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"top1": 88.88}))
    tables.save(Results.read(folder, synthetic_results.study(**SMALL)), folder / "reports/tables")
    assert "it is right on 88.9 % of 1,000 test images" in text_of(folder)


@pytest.mark.parametrize(
    ("accuracy", "says", "not_says"),
    [
        (99.9, "GMP beats SViTE at every sparsity compared.", "SViTE is more accurate in these runs"),
        (70.0, "SViTE beats GMP at every sparsity compared.", "GMP is more accurate in these runs"),
        (None, "No difference between GMP and SViTE is resolved", "is more accurate in"),
    ],
)
def test_the_report_names_the_winner_whoever_it_is(tmp_path, accuracy, says, not_says):
    folder, asked = study(tmp_path, **SMALL), synthetic_results.study(**SMALL)
    for planned in asked.among("weights"):
        if planned.run.method in ("gmp", "svite"):
            mine = accuracy if accuracy and planned.run.method == "gmp" else 90.0
            predict(folder, planned.key, mine)
    tables.save(Results.read(folder, asked), folder / "reports/tables")
    text = text_of(folder)
    assert says in text
    assert not_says not in text


@pytest.mark.parametrize(
    "asked",
    [
        {"methods": ["set"], "densities": [0.3], "seeds": [0]},
        {"methods": ["gmp", "taylor"], "densities": [0.5], "seeds": [0, 1]},
        {"methods": ["svite", "omp"], "densities": [0.3, 0.1], "seeds": [0]},
        {"methods": []},
        {"methods": [], "structured": ["vtp", "sviteplus"], "attention": False},
        {},
    ],
)
def test_other_studies_build_too(tmp_path, asked):
    text = text_of(study(tmp_path, **asked))
    methods = asked.get("methods", ["svite", "gmp", "omp"])
    assert ("GMP against SViTE" in text) == ({"svite", "gmp"} <= {*methods})
    assert ("pays for it" in text) == bool({"omp", "taylor"} & {*methods})
    assert ("3 The study" in text) == ("What SViTE is" in text and "The methods" in text)


OTHER = {  # images, classes, a seed, labels and methods other than those of the default study
    "methods": (), "densities": (0.25,), "seeds": (4,), "attention": False,
    "more": [{"label": "Random", "method": "set"}, {"label": "Random, slow", "method": "set", "fraction": 0.1}],
    "recipe": {"epochs": 3, "optimizer": "adamw"},
}  # fmt: skip
FALSE = (
    "digit", "mnist", "once on", "looked at", "svite is", "half", "tuned", "initialisations says", "seeds", "± ",
    "t interval", "muon is", "spent", "gmp", "omp", "taylor", "structured", "heads", "attention", "epochs was", "13",
    "sparse all along", "cannot be told", "widely",
)  # fmt: skip


def test_a_study_of_other_things_says_nothing_that_is_not_so(tmp_path):
    text = text_of(study(tmp_path, classes=7, **OTHER))
    assert "tells 7 classes of images apart" in text
    assert "All of it is from 1 seed and one data set" in text
    assert "Here it is Random, and Random, slow ( fraction: 0.1)." in text.replace("Random and", "Random, and")
    assert "3 epochs, batches of 64, the optimizer adamw" in text
    body = text.lower()[: text.lower().rindex("references")]
    assert [word for word in FALSE if re.search(rf"(?<!\w){re.escape(word)}", body)] == []


def test_settings_of_one_method_are_told_by_label_and_options(tmp_path):
    more = [setting("svite", pool="uniform") | {"label": "SViTE uniform", "recipe": {"lr": 0.5}}]
    text = text_of(study(tmp_path, **SMALL | {"more": more}))
    assert text.count(") as described above") == 1
    assert "Here it is SViTE and SViTE uniform ( pool: uniform)." in text
    assert "for every setting but SViTE uniform ( lr: 0.5)" in text


def test_a_study_in_a_folder_of_its_own_has_its_own_report(tmp_path):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "reports").mkdir()
    (tmp_path / build.TEMPLATE).write_bytes((ROOT / build.TEMPLATE).read_bytes())
    asked = synthetic_results.study(**OTHER)
    folder = made(tmp_path / "studies/x", asked)
    (folder / "params.yaml").write_text(json.dumps(asked.model_dump(mode="json", exclude_defaults=True)))
    text = text_of(folder)
    assert "Sparse training and pruning: the study x" in text
    assert "Remarks" not in text
    prose = (folder / build.PROSE).read_text()
    prose = prose.replace("remarks = []", "remarks = [It rained.]").replace("limits = ()", "limits = ([It was dark.],)")
    (folder / build.PROSE).write_text(prose)
    assert build.skeleton(folder).read_text() == prose
    text = text_of(folder)
    assert "Remarks It rained." in text
    assert "It was dark." in text


def test_a_study_without_prose_says_how_to_get_it(tmp_path):
    folder = study(tmp_path, **SMALL)
    (folder / build.PROSE).unlink()
    with pytest.raises(ValueError, match=r"study\.typ.*svite plan"):
        build.report(folder, tmp_path / "out")


def test_the_default_studys_prose_builds(tmp_path):
    folder = study(tmp_path, **SMALL)
    (folder / build.PROSE).write_bytes((ROOT / build.PROSE).read_bytes())
    text = text_of(folder)
    assert "The test images were looked at several times" in text
    assert "looked at once" not in text


def test_heads_neurons_and_tokens_have_a_section(tmp_path):
    folder = study(tmp_path, measured=True, **WHOLE)
    text = text_of(folder)
    facts = json.loads((folder / "reports/tables/structure.json").read_text())
    for part in ("accuracy", "short", "line", "speed", "zeros", "survivors", "tokens"):
        assert facts[part] in text
    for row in json.loads((folder / "reports/tables/costs.json").read_text())["rows"]:
        times = [f"{row[batch]['milliseconds']} {row[batch]['speedup']}" for batch in ("batch_1", "batch_64")]
        cells = [
            row["label"],
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
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", (folder / "out/report.html").read_text(), re.DOTALL)
    assert len(captions) == len(NAMES) + 5 + 4 + 3 + 3 + 1  # four figures and three tables more, and the speed card's
    assert sum("make bench" in caption for caption in captions) == 4


def test_a_claim_that_fails_is_told_as_plainly_as_one_that_holds(tmp_path):
    text = text_of(study(tmp_path, measured=True, **WHOLE))
    assert "half of the heads and neurons, batch 8 × the speed of dense 2.12 2.07 to 2.17 at least 2 yes" in text
    assert "batch 8: time saved over MACs saved 0.90 0.85 to 0.95 at least 0.8 yes" in text
    assert "layers 4, 7, 10, batch 8 × the speed of dense 2.90 2.85 to 2.95 at least 3 no" in text
    assert "in 3 of 4 cases; it fails for: inference of DeiT-Small, half of the heads and neurons, tokens" in text


def test_without_measurements_the_section_says_so(tmp_path):
    text = text_of(study(tmp_path, **WHOLE))
    assert "What is taken away whole" in text
    assert "No time was measured: `make bench` does it." in text
    assert "Speed of larger models" not in text


def test_without_whole_parts_there_is_no_such_section(tmp_path):
    text = text_of(study(tmp_path, measured=True, **SMALL))
    assert "What is taken away whole" not in text
    assert "section 7 says what that does not show" in text
    assert "unless a kernel skips them." in text


@pytest.mark.parametrize("methods", [["s2vite"], ["vtp"], ["sviteplus"], ["layer"]])
def test_each_method_of_whole_parts_alone_makes_a_report(tmp_path, methods):
    asked = SMALL | {"methods": ["set"], "structured": methods, "kept": [0.5]}
    text = text_of(study(tmp_path, measured=True, **asked))
    assert ("Which tokens are kept" in text) == (methods == ["sviteplus"])
    assert ("Which heads and neurons are left" in text) == (methods == ["s2vite"])


def test_a_missing_figure_is_named_and_no_report_is_left(tmp_path):
    folder = study(tmp_path, **SMALL)
    (folder / "reports/figures/cost.svg").unlink()
    with pytest.raises(ValueError, match=r"cost\.svg.*dvc repro figures") as error:
        build.report(folder, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_warning_of_the_template_is_an_error(tmp_path):
    folder = study(tmp_path, **SMALL)
    template = folder / build.TEMPLATE
    template.write_text(template.read_text() + '\n#text(font: "No Such Font")[x]\n')
    with pytest.raises(ValueError, match=r"(?i)no such font"):
        build.report(folder, tmp_path / "out")
