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
TIMED = ["milliseconds", "speedup", "low", "high", "deployed"]
CARD = ["milliseconds", "images_a_second", "megabytes_peak", "megabytes_stored", "of_the_limit"]
# What the names of claims begin with: about shrunk models, about single zeros, about what training with it all costs.
STRUCTURE, SINGLE = ("inference of ", "training of "), ("layer of ", "deploying ")
OVERHEAD = (
    *("memory of ", "training step of ", "topology update of ", "training loop of ", "checkpoint of "),
    *("images that one worker reads", "two processes on two cores"),
)


def latencies(folder: str | Path) -> pd.DataFrame:
    """One row a model and batch that was timed: key, its MACs, batch, and what was measured.

    That is milliseconds, speed-up over dense with its interval, and the speed-up of the deployed model.
    """
    models = _read(Path(folder) / LATENCY).get("models", {})
    rows = [
        (key, model.get("macs"), batch, *(timed[name] for name in TIMED[:2]), *timed["interval"], timed.get("deployed"))
        for key, model in models.items()
        for batch in BATCHES
        if (timed := model.get(str(batch)))
    ]
    return pd.DataFrame(rows, columns=["key", "timed_macs", "batch", *TIMED]).astype(dict.fromkeys(TIMED, float))


def machine(folder: str | Path) -> str:
    """Where the models of the study were timed; "" where they were not."""
    where = _read(Path(folder) / LATENCY).get("machine", {})
    threads = where.get("threads", 1)
    return f"{where['processor']}, {threads} thread{'s' * (threads > 1)}" if where else ""


def claims(folder: str | Path, about: tuple[str, ...]) -> list[dict[str, Any]]:
    """The claims whose names begin so."""
    return [claim for claim in _read(Path(folder) / BENCH).get("claims", []) if claim["name"].startswith(about)]


def card(folder: str | Path) -> pd.DataFrame:
    """The speed card, a row a model, runtime and batch; `speed` is that over dense, with its interval."""
    rows = _read(Path(folder) / BENCH).get("card", {}).get("rows", [])
    frame = pd.DataFrame(rows, columns=["model", "runtime", "batch", *CARD])
    low, high = ([row["speedup"]["interval"][end] for row in rows] for end in (0, 1))
    return frame.assign(speed=[row["speedup"]["value"] for row in rows], low=low, high=high)


def saved_of_deit(folder: str | Path) -> str:
    """The range of time saved over operations saved of the larger models; "" where it was not measured."""
    found = [claim["value"] for claim in claims(folder, STRUCTURE) if "time saved over MACs saved" in claim["name"]]
    return f"{min(found):.2f} to {max(found):.2f}" if found else ""


def verdict(folder: str | Path, about: tuple[str, ...]) -> dict[str, Any]:
    """The claims as people read them, and one sentence on how many of them hold."""
    found = claims(folder, about)
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
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("it holds no mapping")
        return found
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read ({error}): `make bench` writes it again.") from None
