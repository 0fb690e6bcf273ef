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
    interval: Sequence[float] | None = None
    quartiles: Sequence[float] | None = None
    bound: float | None = None

    @classmethod
    def of(cls, name: str, unit: str, values: Float[ndarray, " rounds"], bound: float | None = None) -> "Claim":
        """The median of one value a round."""
        return cls(name, unit, **spread(values), bound=bound)

    @property
    def holds(self) -> bool | None:
        """Whether the bound is kept by the whole interval, where there is one."""
        worst = self.value if self.interval is None else self.interval[1]
        return None if self.bound is None else worst <= self.bound

    def entry(self) -> dict[str, Any]:
        """Plain values, rounded to what a clock can tell."""
        return {
            "name": self.name,
            "unit": self.unit,
            "value": round(self.value, 4),
            "interval": _rounded(self.interval),
            "quartiles": _rounded(self.quartiles),
            "bound": self.bound,
            "holds": self.holds,
        }


def _rounded(pair: Sequence[float] | None) -> list[float] | None:
    return None if pair is None else [round(value, 4) for value in pair]


def table(claims: Sequence[Claim]) -> str:
    """The claims in Markdown."""
    rows = ["| measured | value | 95 % interval | bound | holds |", "|---|---|---|---|---|"]
    for claim in claims:
        interval = "" if claim.interval is None else "{:.3f} to {:.3f}".format(*claim.interval)
        bound = "" if claim.bound is None else f"{claim.bound:g}"
        holds = {True: "yes", False: "NO", None: ""}[claim.holds]
        rows.append(f"| {claim.name} | {claim.value:.3f} {claim.unit} | {interval} | {bound} | {holds} |")
    return "\n".join(rows)
