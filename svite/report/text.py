"""Numbers and lists as people read them, the same in every table and sentence."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd


def signed(points: float) -> str:
    """Points with their sign: -0.5 -> '−0.50', 0.001 -> '0.00'."""
    text = f"{points:+.2f}".replace("-", "−")
    return "0.00" if text[1:] == "0.00" else text


def spread(mean: float, std: float) -> str:
    """A mean with its standard deviation, which one seed alone has not."""
    return f"{mean:.1f}" if pd.isna(std) else f"{mean:.1f} ± {std:.1f}"


def difference(row: Any) -> dict[str, Any]:
    """A difference with its interval, and whether the interval leaves out zero; dashes where nothing was compared."""
    if row is None:
        return {"difference": "–", "interval": "", "clear": False}
    return {
        "difference": signed(row.difference),
        "interval": f"{signed(row.low)} to {signed(row.high)}",
        "clear": bool(row.low > 0 or row.high < 0),
    }


def listed(words: Sequence[str]) -> str:
    """Words as a sentence lists them.

    >>> listed(["40 %", "70 %", "90 %"])
    '40 %, 70 % and 90 %'
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def span(low: float, high: float, digits: int = 2) -> str:
    """The range of some numbers, or the one number that they all are.

    >>> span(0.994, 1.021), span(1.0, 1.004)
    ('0.99 to 1.02', '1.00')
    """
    first, last = f"{low:.{digits}f}", f"{high:.{digits}f}"
    return first if first == last else f"{first} to {last}"


def counted(number: int, word: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number} {word}" if number == 1 else f"{number:,} {word}s"


def seeds(runs: pd.DataFrame) -> str:
    """With how many seeds each setting was run, at each of its densities: '3 seeds', '1 to 3 seeds'."""
    counts = runs.groupby(["label", "density"]).size()
    fewest, most = int(counts.min()), int(counts.max())
    return counted(most, "seed") if fewest == most else f"{fewest} to {counted(most, 'seed')}"


def mean(runs: pd.DataFrame) -> str:
    """What a point or line of a figure is, for its subtitle."""
    several = runs.groupby(["label", "density"]).size().max() > 1
    return f"Mean over {seeds(runs)}" if several else "One seed each"


def means(runs: pd.DataFrame) -> str:
    """What points, lines and intervals of a figure are, for its subtitle."""
    told = mean(runs)
    if "over" not in told:
        return f"{told}."
    return f"{told} with the 95 % t interval of that mean; dots are single seeds."


def command(runs: pd.DataFrame) -> str:
    """What trains the runs of a row: one stage a seed."""
    targets, numbers = list(map(shlex.quote, runs["target"])), list(map(str, runs["seed"]))
    return f"dvc repro {_braced(targets, numbers) or ' '.join(targets)}"


def _braced(targets: Sequence[str], numbers: Sequence[str]) -> str:
    """Targets that differ in their seeds alone as one word for the shell; nothing where that can't be.

    >>> _braced(["train@a-0.3-0-b", "train@a-0.3-1-b"], ["0", "1"])
    'train@a-0.3-{0,1}-b'
    """
    first = targets[0]
    for found in re.finditer(numbers[0], first):
        start, end = first[: found.start()], first[found.end() :]
        each = [start + number + end for number in numbers]
        if len(targets) > 1 and "'" not in first and each == targets:
            return f"{start}{{{','.join(numbers)}}}{end}"
    return ""


def fill(path: str | Path, marks: tuple[str, str], text: str) -> str:
    """Put text between two marks of a page, in place of what is there; gives the whole page.

    Raises ValueError for a page without the marks.
    """
    path, (start, end) = Path(path), marks
    between = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    page, places = between.subn(lambda _: f"{start}\n{text}\n{end}", path.read_text(encoding="utf-8"))
    if not places:
        raise ValueError(f"{path} has no place for its tables: a line {start}, then {end}.")
    path.write_text(page, encoding="utf-8")
    return page
