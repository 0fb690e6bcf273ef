"""What `make bench` measured: the speed of the study's models, and the claims about DeiT.

No stage of the pipeline makes these files, so that running a stage again changes no byte of what it makes; and nothing
waits for them: what was not measured is not drawn.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

LATENCY, BENCH = "reports/latency.json", "reports/bench.json"
BATCHES = (1, 64)
TIMED = ["milliseconds", "speedup", "low", "high"]
STRUCTURE = ("inference of ", "training of ")  # what the names of claims about shrunk models begin with


def latencies(folder: str | Path) -> pd.DataFrame:
    """One row a model and batch that was timed: key, batch, milliseconds, speed-up over dense and its interval."""
    models = _read(Path(folder) / LATENCY).get("models", {})
    rows = [
        (key, batch, timed["milliseconds"], timed["speedup"], *timed["interval"])
        for key, model in models.items()
        for batch in BATCHES
        if (timed := model.get(str(batch)))
    ]
    return pd.DataFrame(rows, columns=["key", "batch", *TIMED]).astype(dict.fromkeys(TIMED, float))


def machine(folder: str | Path) -> str:
    """Where the models of the study were timed; "" where they were not."""
    where = _read(Path(folder) / LATENCY).get("machine", {})
    threads = where.get("threads", 1)
    return f"{where['processor']}, {threads} thread{'s' * (threads > 1)}" if where else ""


def claims(folder: str | Path) -> list[dict[str, Any]]:
    """The claims about models with fewer heads, neurons and tokens: speed, and time saved over operations saved."""
    return [claim for claim in _read(Path(folder) / BENCH).get("claims", []) if claim["name"].startswith(STRUCTURE)]


def verdict(folder: str | Path) -> dict[str, Any]:
    """The claims as people read them, and one sentence on how many of them hold."""
    found = claims(folder)
    rows = [
        {
            "name": claim["name"][0].upper() + claim["name"][1:],
            "unit": claim["unit"].replace("x ", "× ", 1),
            "value": f"{claim['value']:.2f}",
            "interval": "{:.2f} to {:.2f}".format(*claim["interval"]),
            "asked": _asked(claim),
            "holds": {True: "yes", False: "no"}.get(claim.get("holds"), "–"),
        }
        for claim in found
    ]
    return {"rows": rows, "verdict": _verdict([claim for claim in found if claim.get("holds") is not None])}


def _verdict(asked: list[dict[str, Any]]) -> str:
    """How many claims of those that ask for something hold, and the names of the others."""
    if not asked:
        return ""
    missed = [claim["name"] for claim in asked if not claim["holds"]]
    if not missed:
        return f"What was asked for holds in all {len(asked)} cases, with the whole interval."
    kept = f"What was asked for holds, with the whole interval, in {len(asked) - len(missed)} of {len(asked)} cases"
    return f"{kept}; it fails for: {'; '.join(missed)}."


def _asked(claim: dict[str, Any]) -> str:
    if claim.get("floor") is not None:
        return f"at least {claim['floor']:g}"
    return "–" if claim.get("bound") is None else f"at most {claim['bound']:g}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} can't be read ({error}): `make bench` writes it again.") from None
