"""What was measured, and the bound that it has to keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from numpy import ndarray

from benchmarks.interleave import spread


@dataclass(frozen=True)
class Claim:
    """A measured number; without a bound it is only reported. A bound is an upper one, but `floor` is a lower one."""

    name: str
    unit: str
    value: float
    interval: Sequence[float]
    quartiles: Sequence[float]
    bound: float | None = None
    floor: float | None = None

    @classmethod
    def of(
        cls,
        name: str,
        unit: str,
        values: Float[ndarray, " rounds"],
        bound: float | None = None,
        floor: float | None = None,
    ) -> "Claim":
        """The median of one value a round, with its spread."""
        return cls(name, unit, **spread(values), bound=bound, floor=floor)

    @property
    def holds(self) -> bool | None:
        """Whether the whole interval keeps the bound."""
        if self.floor is not None:
            return self.interval[0] >= self.floor
        return None if self.bound is None else self.interval[1] <= self.bound

    def entry(self) -> dict[str, Any]:
        """Plain values, rounded to what a clock can tell."""
        return {
            "name": self.name,
            "unit": self.unit,
            "value": round(self.value, 4),
            "interval": [round(value, 4) for value in self.interval],
            "quartiles": [round(value, 4) for value in self.quartiles],
            "bound": self.bound,
            "floor": self.floor,
            "holds": self.holds,
        }


def table(claims: Sequence[Claim]) -> str:
    """The claims in Markdown."""
    rows = ["| measured | value | 95 % interval | bound | holds |", "|---|---|---|---|---|"]
    for claim in claims:
        interval = "{:.3f} to {:.3f}".format(*claim.interval)
        bound = "" if claim.bound is None else f"at most {claim.bound:g}"
        bound = bound if claim.floor is None else f"at least {claim.floor:g}"
        holds = {True: "yes", False: "NO", None: ""}[claim.holds]
        rows.append(f"| {claim.name} | {claim.value:.3f} {claim.unit} | {interval} | {bound} | {holds} |")
    return "\n".join(rows)
