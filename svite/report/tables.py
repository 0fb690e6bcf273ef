"""The results table, one row a setting and sparsity: as numbers, for HTML, the report, the README.

What a reader sees is formatted in one place, so that all of them say the same.
"""

import json
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from svite.report import costs, gains, measured, speed
from svite.report.findings import findings
from svite.report.results import Results
from svite.report.style import sparsity_of
from svite.report.text import command, difference, fill, seeds, spread

COLUMNS = {
    "label": "Method", "sparsity": "Sparsity", "nonzero": "Non-zero parameters",
    "top1": "Top-1 (%)", "top5": "Top-5 (%)", "cost": "Training cost",
}  # fmt: skip
MARKS = ("<!-- results -->", "<!-- /results -->")
NOTE = (
    "Test accuracy after the last epoch, mean{spread} over {seeds}; the highest mean at a sparsity in bold where its "
    "paired difference to the next is resolved. "
    "Training cost: operations relative to the dense run, dense pre-training included."
)


def table(results: Results) -> pd.DataFrame:
    """One row a setting and sparsity: means over seeds, and standard deviations where there are."""
    runs = results.runs.assign(order=results.runs["label"].map(_ranks(results)))
    groups = runs.groupby(["density", "order", "label", "method"])
    frame = groups.agg(
        seeds=("seed", "size"), nonzero=("nonzero", "mean"), parameters=("parameters", "mean"),
        top1=("top1", "mean"), top1_std=("top1", "std"), top5=("top5", "mean"),
        top5_std=("top5", "std"), cost=("training_cost", "mean"),
    )  # fmt: skip
    frame = frame.reset_index().sort_values(["density", "order"], ascending=[False, True])
    frame.insert(1, "sparsity", (1 - frame["density"]).round(6))
    whole = {"nonzero": "int64", "parameters": "int64"}
    order = ["label", "method", "sparsity", *frame.columns.drop(["label", "method", "sparsity", "order"])]
    return frame.round({"nonzero": 0, "parameters": 0}).astype(whole)[order].reset_index(drop=True)


def _ranks(results: Results) -> dict[str, int]:
    return {label: rank for rank, label in enumerate([results.study.baseline, *results.labels])}


def rows(results: Results) -> list[dict[str, Any]]:
    """The table as people read it: text in each cell, and what HTML and the report mark it with."""
    frame = table(results)
    groups = results.runs.groupby(["label", "density"])
    return [
        {
            "label": row.label,
            "color": results.looks[row.label].color,
            "sparsity": sparsity_of(row.density),
            "nonzero": f"{row.nonzero:,}",
            "top1": spread(row.top1, row.top1_std),
            "top5": spread(row.top5, row.top5_std),
            "cost": f"{row.cost:.2f}×",
            "best": results.leaders.get(row.density) == row.label,
            "command": command(groups.get_group((row.label, row.density))),
        }
        for row in frame.itertuples()
    ]


def paired_rows(results: Results, against: str) -> list[dict[str, Any]]:
    """Each setting's differences from another, one cell a sparsity; none of what was not compared."""
    return [
        {
            "label": label,
            "color": results.looks[label].color,
            "cells": [difference(results.gap(label, against, density)) for density in results.densities],
        }
        for label in results.labels
        if ((results.paired["label"] == label) & (results.paired["against"] == against)).any()
    ]


def save(results: Results, folder: str | Path = "reports/tables") -> pd.DataFrame:
    """Write the table as results.csv and results.html, costs as costs.csv, and what the report reads as JSON."""
    folder, frame = Path(folder), table(results)
    folder.mkdir(parents=True, exist_ok=True)
    frame.round(6).to_csv(folder / "results.csv", index=False, lineterminator="\n")
    (folder / "results.html").write_text(html(results), encoding="utf-8")
    rivals = [label for label in (results.study.reference, results.study.baseline) if label]
    paired = [{"against": against, "rows": paired_rows(results, against)} for against in rivals]
    for name, value in (
        ("results", {"rows": rows(results), "note": _note(results)}),
        ("paired", {"tables": paired, "sparsities": [sparsity_of(d) for d in results.densities]}),
        ("findings", findings(results)),
        ("structure", gains.findings(results)),
        ("costs", {"rows": costs.rows(results) if len(results.structured) else [], "note": costs.note(results)}),
        ("claims", measured.verdict(results.folder, measured.STRUCTURE)),
        ("overhead", measured.verdict(results.folder, measured.OVERHEAD)),
        ("speed", measured.verdict(results.folder, measured.SINGLE) | {"card": speed.rows(results.folder)}),
    ):
        exact = json.loads(json.dumps(value), parse_float=lambda number: round(float(number), 6))
        text = json.dumps(exact, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    if len(results.structured):
        costs.costs(results).round(6).to_csv(folder / "costs.csv", index=False, lineterminator="\n")
    return frame


def _note(results: Results) -> str:
    several = results.runs.groupby(["label", "density"]).size().max() > 1
    return NOTE.format(seeds=seeds(results.runs), spread=" ± standard deviation" * int(several))


def html(results: Results) -> str:
    """The table as a page of its own."""
    heads = "".join(f"<th>{name}</th>" for name in COLUMNS.values())
    body, before = [], None
    for row in rows(results):
        start = " class=first" if row["sparsity"] != before else ""
        before = row["sparsity"]
        dot = f'<i style="background:{row["color"]}"></i>'
        cells = [f"<td>{dot}{escape(row['label'])}</td>", *(_cell(row, n) for n in [*COLUMNS][1:])]
        body.append(f"<tr{start}>{''.join(cells)}</tr>")
    return PAGE.format(heads=heads, body="\n".join(body), note=escape(_note(results)))


def _cell(row: dict[str, Any], name: str) -> str:
    text = escape(row[name])
    return f"<td><b>{text}</b></td>" if name == "top1" and row["best"] else f"<td>{text}</td>"


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Results</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2328; margin: 2.5rem auto;
  width: max-content; max-width: 94vw; }}
table {{ border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid;
  font-variant-numeric: tabular-nums; }}
th, td {{ padding: .32rem 1rem; text-align: right; white-space: nowrap; }}
th {{ font-weight: 600; border-bottom: 1px solid; }}
th:first-child, td:first-child {{ text-align: left; padding-left: .4rem; }}
tr.first td {{ border-top: 1px solid #d5d9de; padding-top: .55rem; }}
tbody tr:hover {{ background: #f6f7f9; }}
i {{ display: inline-block; width: .62em; height: .62em; border-radius: 50%; margin-right: .6em; }}
p {{ color: #68707a; max-width: 46rem; }}
</style></head><body>
<table><thead><tr>{heads}</tr></thead>
<tbody>
{body}
</tbody></table>
<p>{note}</p>
</body></html>
"""


def markdown(results: Results) -> str:
    """The tables for the README: each row ends with the command that trains its runs."""
    lines = ["| " + " | ".join([*COLUMNS.values(), "Command"]) + " |", "|:--|--:|--:|--:|--:|--:|:--|"]
    for row in rows(results):
        cells = [row[name] for name in COLUMNS]
        cells[3] = f"**{cells[3]}**" if row["best"] else cells[3]
        lines.append("| " + " | ".join([*cells, f"`{row['command']}`"]) + " |")
    verdict = findings(results)["verdict"]
    said = ["", f"**{verdict}**"] if verdict else []
    whole = ["", costs.markdown(results)] if len(results.structured) else []
    return "\n".join([*lines, "", _note(results), *said, *whole])


def update_readme(results: Results, path: str | Path = "README.md") -> str:
    """Put the table between the README's marks, in place; gives the new text."""
    return fill(path, MARKS, markdown(results))
