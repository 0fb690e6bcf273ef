"""A sparsifier's saved state, and whether it is of this sparsifier: looked at whole, before anything changes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from svite.sparsity.history import Update
from svite.sparsity.pool import Pool
from svite.sparsity.rule import Rule


def plan(contests: Sequence[tuple[Pool, Rule]]) -> list[dict[str, Any]]:
    """Who competes with whom, at what density, by which rule and scores. Schedules are code, and not told."""
    return [
        {
            "units": [unit.name for unit in pool.units],
            "density": pool.density,
            "rule": f"{type(rule).__name__}({', '.join(score.__name__ for score in rule.scores)})",
        }
        for pool, rule in contests
    ]


def refuse_other(own: Mapping[str, Any], state: Any) -> None:
    """Raise ValueError, saying what differs, for a state that is not of the sparsifier whose state is `own`."""
    try:
        _compare(own, state)
    except (AttributeError, KeyError, TypeError, RuntimeError):
        raise ValueError("The saved topology is damaged: its parts are of other kinds than what was saved.") from None


def _compare(own: Mapping[str, Any], state: Any) -> None:
    missing = [key for key in own if not isinstance(state, Mapping) or key not in state]
    if missing:
        raise ValueError(f"The saved topology has no {', '.join(missing)}; it is no state that this svite wrote.")
    now, then = own["shapes"], state["shapes"]
    different = sorted(name for name in {*now, *then} if now.get(name) != then.get(name))
    if different:
        raise ValueError(f"The saved topology is of another model: {', '.join(different)} differ.")
    for now, then in zip(own["plan"], state["plan"], strict=False):
        for key in ("rule", "density", "units"):
            if now[key] != then.get(key):
                raise ValueError(
                    f"The saved topology is of another method: for {now['units'][0]} the {key} was {then.get(key)} and "
                    f"is {now[key]}; build the sparsifier as it was built then."
                )
    broken = next(_damages(own, state), None)
    if broken:
        raise ValueError(f"The saved topology is damaged: {broken} is not what was saved.")


def _damages(own: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[str]:
    """The places where a state has another form than this sparsifier's."""
    if type(state["step"]) is not int or state["step"] < 0:
        yield "step"
    if type(state["pending"]) is not bool:
        yield "pending"
    if len(own["plan"]) != len(state["plan"]):
        yield "plan"
    for place, before, now in (
        ("alive", state["alive"], own["alive"]),
        ("history", state["history"], own["history"]),
        ("scores", state["scores"], own["scores"]),
    ):
        if not isinstance(before, Mapping) or before.keys() != now.keys():
            yield place
            return
    yield from (f"'alive' of {name}" for name, bits in own["alive"].items() if not _like(bits, state["alive"][name]))
    yield from _of_history(own["history"], state["history"])
    members = {name: tuple(shape[-2:]) for name, shape in own["shapes"].items()}
    if type(state["scores"]["batches"]) is not int or state["scores"]["batches"] < 0:
        yield "scores"
    sums = [each for score in state["scores"]["sums"].values() for each in score.items()]
    if any(name not in members or tuple(value.shape) != members[name] for name, value in sums):
        yield "scores"


def _of_history(own: Mapping[str, Any], history: Mapping[str, Any]) -> Iterator[str]:
    yield from (name for name in ("born", "died", "ever") if history[name].keys() != own[name].keys())
    yield from (f"'ever' of {name}" for name, bits in own["ever"].items() if not _like(bits, history["ever"].get(name)))
    if any(update.keys() != {field.name for field in fields(Update)} for update in history["updates"]):
        yield "updates"


def _like(wanted: Tensor, bits: Any) -> bool:
    return isinstance(bits, Tensor) and (bits.dtype, bits.shape) == (wanted.dtype, wanted.shape)
