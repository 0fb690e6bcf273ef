"""What was measured, and the bound that it has to keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from numpy import ndarray

from benchmarks.interleave import spread


@dataclass(frozen=True)
class Claim:
    """A measured number; without a bound it is only reported."""

    name: str
    unit: str
    value: float
    interval: Sequence[float]
    quartiles: Sequence[float]
    bound: float | None = None

    @classmethod
    def of(cls, name: str, unit: str, values: Float[ndarray, " rounds"], bound: float | None = None) -> "Claim":
        """The median of one value a round, with its spread."""
        return cls(name, unit, **spread(values), bound=bound)

    @property
    def holds(self) -> bool | None:
        """Whether the whole interval keeps the bound."""
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
            "holds": self.holds,
        }


def table(claims: Sequence[Claim]) -> str:
    """The claims in Markdown."""
    rows = ["| measured | value | 95 % interval | bound | holds |", "|---|---|---|---|---|"]
    for claim in claims:
        interval = "{:.3f} to {:.3f}".format(*claim.interval)
        bound = "" if claim.bound is None else f"{claim.bound:g}"
        holds = {True: "yes", False: "NO", None: ""}[claim.holds]
        rows.append(f"| {claim.name} | {claim.value:.3f} {claim.unit} | {interval} | {bound} | {holds} |")
    return "\n".join(rows)
