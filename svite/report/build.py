"""The report as PDF and as one HTML page, both from `reports/report.typ` and the results in git."""

import argparse
from pathlib import Path

import typst

TEMPLATE = Path("reports/report.typ")
EXPECTED = ("html export is under active development", "ignored during HTML export")


def report(folder: str | Path = ".", out: str | Path = "reports") -> list[Path]:
    """Build report.pdf and report.html in `out` from the template, tables and figures in `folder`.

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


def _compile(folder: Path, kind: str) -> bytes:
    """One of the two, in memory; what is wrong is said in one sentence."""
    try:
        content, warnings = typst.compile_with_warnings(
            folder / TEMPLATE, root=folder, format=kind, ignore_system_fonts=True
        )
    except typst.TypstError as error:
        hint = " Make tables and figures first: `dvc repro figures`." * ("not found" in str(error))
        raise ValueError(f"{TEMPLATE} does not build: {error.message}.{hint}") from None
    for warning in warnings:
        if not any(text in warning.message for text in EXPECTED):
            raise ValueError(f"{TEMPLATE} builds with a warning: {warning.message}.")
    return content


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="reports", help="folder of report.pdf and report.html")
    for path in report(".", parser.parse_args().out):
        print(path)
