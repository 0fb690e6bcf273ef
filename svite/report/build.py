"""The report of a study as PDF and as one HTML page, both from the repository's template and the study's results."""

import argparse
from pathlib import Path

import typst

from svite.io.files import write
from svite.params.paths import repository

TEMPLATE, PROSE = Path("reports/report.typ"), Path("reports/study.typ")
EXPECTED = ("html export is under active development", "ignored during HTML export")
SKELETON = """// What the report can't know of this study: what was chosen, and why. The top of reports/report.typ in
// the repository describes each piece; an empty one is left out.

#let title = "Sparse training and pruning: the study {name}"
#let introduction = []
#let data = []
#let choices = []
#let remarks = []
#let limits = ()
"""


def report(folder: str | Path = ".", out: str | Path = "reports") -> list[Path]:
    """Build report.pdf and report.html in `out` from the study in `folder`: its tables, figures and own prose.

    Only fonts that come with typst are used and no date is written: same input, same bytes.
    """
    folder, out = Path(folder).resolve(), Path(out)
    made = {kind: _compile(folder, kind) for kind in ("pdf", "html")}
    out.mkdir(parents=True, exist_ok=True)
    for kind, content in made.items():
        part = out / f".report.{kind}.part"
        part.write_bytes(content)
        part.replace(out / f"report.{kind}")
    return [out / f"report.{kind}" for kind in made]


def skeleton(folder: str | Path = ".") -> Path:
    """Write `reports/study.typ`, the study's own prose, with nothing in it yet; one that is there stays."""
    path = Path(folder) / PROSE
    if not path.exists():
        name = path.resolve().parents[1].name
        write(path, SKELETON.format(name=name.replace("\\", "\\\\").replace('"', '\\"')))
    return path


def _compile(folder: Path, kind: str) -> bytes:
    """One of the two, in memory; what is wrong is said in one sentence."""
    root = (folder / repository(folder)).resolve()
    study = "" if folder == root else f"/{folder.relative_to(root).as_posix()}"
    try:
        content, warnings = typst.compile_with_warnings(
            root / TEMPLATE, root=root, format=kind, ignore_system_fonts=True, sys_inputs={"study": study}
        )
    except typst.TypstError as error:
        raise ValueError(f"{TEMPLATE} does not build: {error.message}.{_hint(error.message)}") from None
    for warning in warnings:
        if not any(text in warning.message for text in EXPECTED):
            raise ValueError(f"{TEMPLATE} builds with a warning: {warning.message}.")
    return content


def _hint(message: str) -> str:
    """How to get a file that is missing."""
    if "not found" not in message:
        return ""
    if PROSE.name in message:
        return f" Write {PROSE} first: `svite plan` makes an empty one."
    return " Make tables and figures first: `dvc repro figures`."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="reports", help="folder of report.pdf and report.html")
    for path in report(".", parser.parse_args().out):
        print(path)
