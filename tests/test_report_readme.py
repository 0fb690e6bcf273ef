"""The README's table is the one that the committed results make."""

from pathlib import Path

from svite.report import tables
from svite.report.results import Results
from svite.study import load

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_agrees_with_the_results():
    results = Results.read(ROOT, grid=load(ROOT / "params.yaml").grid.model_dump())
    start, end = tables.MARKS
    between = (ROOT / "README.md").read_text(encoding="utf-8").split(start)[1].split(end)[0]
    assert between.strip() == tables.markdown(results), "rewrite it with svite.report.tables.update_readme"
