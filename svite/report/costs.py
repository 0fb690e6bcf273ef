"""What every model of the study costs: parameters, operations, bytes and measured time, beside its accuracy."""

from typing import Any

import pandas as pd

from svite.report.measured import BATCHES, TIMED, latencies, machine
from svite.report.results import Results
from svite.report.style import percent
from svite.report.text import command, seeds, spread

NOTE = (
    "Means over {seeds}{spread}. Kept: the share of {weights}what the method takes away. Parameters: those that "
    "are not zero. MACs: multiply-accumulates of an image as the saved "
    "model runs, in which single zeros count in full. Bytes: the saved file. "
)
SHORT = (
    "What is taken away whole. Means over {seeds}{spread}. Kept: the share of what the method takes away. "
    "Parameters: those that are not zero. MACs: multiply-accumulates of "
    "an image. "
)
SPEED = "Speed: over dense, batch 64, one seed, on {machine}."
TIMES = (
    "Milliseconds a batch and speed over dense, one seed, measured on {machine}; deployed: the speed at batch 64 of "
    "what svite.deploy makes of the model."
)
UNTIMED = "No time was measured: `make bench` does it."


def costs(results: Results) -> pd.DataFrame:
    """One row a setting and kept share, the baseline first: means over seeds, shares of dense, times if there are any.

    `time_64` is the share of the dense model's time at batch 64, `saved_64` the share of time saved over the share of
    multiply-accumulates saved.
    """
    runs = pd.concat([results.runs, results.structured], ignore_index=True)
    frame = runs.groupby(["label", "density"], sort=False).agg(
        seeds=("seed", "size"), parameters=("parameters", "mean"), nonzero=("nonzero", "mean"), macs=("macs", "mean"),
        bytes=("bytes", "mean"), top1=("top1", "mean"), top1_std=("top1", "std"),
    )  # fmt: skip
    dense = frame.loc[results.study.baseline].iloc[0]
    frame["nonzero_share"] = frame["nonzero"] / frame["parameters"]
    frame["macs_share"] = frame["macs"] / dense["macs"]
    for batch in BATCHES:
        timed = _timed(results, runs, batch)
        saved = (1 - 1 / timed["speedup"]) / (1 - frame["macs_share"]).where(frame["macs_share"] < 0.99)
        timed = timed.assign(time=1 / timed["speedup"], saved=saved)
        frame = frame.join(timed.add_suffix(f"_{batch}"))
    return frame.reset_index().rename(columns={"density": "kept"})


def _timed(results: Results, runs: pd.DataFrame, batch: int) -> pd.DataFrame:
    """The time of each setting and density: that of its first seed that was timed and is the same network still."""
    found = latencies(results.folder).query("batch == @batch")
    same = runs.merge(found, on="key").query("macs == timed_macs")
    return same.groupby(["label", "density"])[TIMED].first()


def rows(results: Results) -> list[dict[str, Any]]:
    """The cost table as people read it: baseline, reference, and all that takes whole parts away."""
    frame, shown = costs(results), [results.study.baseline, results.study.reference, *results.structured_labels]
    groups = pd.concat([results.runs, results.structured], ignore_index=True).groupby(["label", "density"])
    return [
        {
            "label": row.label,
            "color": results.looks[row.label].color,
            "kept": percent(row.kept),
            "nonzero": f"{row.nonzero:,.0f}",
            "macs": f"{row.macs / 1e6:.2f} M",
            "bytes": f"{row.bytes / 1e3:.0f} kB",
            **{f"batch_{batch}": _time(row, batch) for batch in BATCHES},
            "deployed": "–" if pd.isna(row.deployed_64) else f"{row.deployed_64:.2f}×",
            "top1": spread(row.top1, row.top1_std),
            "command": command(groups.get_group((row.label, row.kept))),
        }
        for row in frame[frame["label"].isin(shown)].itertuples()
    ]


def _time(row: Any, batch: int) -> dict[str, str]:
    """Milliseconds and speed-up, or a dash where the model was not timed."""
    milliseconds, speedup = getattr(row, f"milliseconds_{batch}"), getattr(row, f"speedup_{batch}")
    if pd.isna(speedup):
        return {"milliseconds": "–", "speedup": ""}
    return {"milliseconds": f"{milliseconds:.2f}", "speedup": f"{speedup:.2f}×"}


def note(results: Results) -> str:
    """What the columns of the table mean, and on which machine its times were taken."""
    where = machine(results.folder)
    weights = f"weights ({results.study.reference}) or of " if results.study.reference else ""
    return NOTE.format(weights=weights, **_counts(results)) + (TIMES.format(machine=where) if where else UNTIMED)


def _counts(results: Results) -> dict[str, str]:
    """How many seeds the means are of, and that accuracy has a deviation where there are several."""
    runs = pd.concat([results.runs, results.structured])
    spread = ", accuracy ± standard deviation" if len(runs) > len(runs.drop_duplicates(["label", "density"])) else ""
    return {"seeds": seeds(runs), "spread": spread}


def markdown(results: Results) -> str:
    """What is taken away whole, for the README: what is left, how fast it was measured to be, and the command."""
    whole, where = {results.study.baseline, *results.structured_labels}, machine(results.folder)
    lines = ["| Method | Kept | Parameters | MACs | Speed | Top-1 (%) | Command |", "|:--|--:|--:|--:|--:|--:|:--|"]
    for row in rows(results):
        if row["label"] in whole:
            speed = row["batch_64"]["speedup"] or "–"
            cells = [row["label"], row["kept"], row["nonzero"], row["macs"], speed, row["top1"], f"`{row['command']}`"]
            lines.append(f"| {' | '.join(cells)} |")
    note = SHORT.format(**_counts(results)) + (SPEED.format(machine=where) if where else UNTIMED)
    return "\n".join([*lines, "", note])
