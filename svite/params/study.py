"""The study as `params.yaml` states it: settings, and the runs that follow from them. Imports no torch."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from svite.params import options as its
from svite.params.recipe import Fraction, Model, Recipe, Strict, near, parse, read
from svite.params.run import DENSE, FileName, Run, key, known

MARKS = r"\s|*_`#<>$@\\"  # of Markdown, HTML or typst, into which a label goes
Label = Annotated[str, Field(max_length=60, pattern=rf"^[^{MARKS}]( ?[^{MARKS}])*$")]
Seeds = tuple[Annotated[int, Field(ge=0, lt=2**32)], ...]
Densities = tuple[Fraction, ...]
Group = Literal["weights", "structures", "attention", "start"]


class Setting(Strict):
    """A line of the results: a method with its options, at some densities and with some seeds.

    What is no key of its own is an option of the method, by the name of the method's argument: `pool: uniform`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    label: Label = Field(description="what figures, tables and text call it")
    method: str
    name: FileName | None = Field(default=None, description="what its files begin with, in place of the method")
    group: Group = Field(
        default="weights",
        description="where it is reported: with single weights; with heads, neurons, features and tokens; where "
        "attention is drawn; or, being the start of others, nowhere by itself",
    )
    densities: Densities | None = Field(default=None, description="in place of the study's")
    seeds: Seeds | None = Field(default=None, description="in place of the study's")
    start: str | None = Field(default=None, description="the label of the dense setting whose models it prunes")
    share: Fraction | None = Field(default=None, description="of the epochs; all, or what its start has left of them")
    model: dict[str, Any] = Field(default={}, description="what is other than in the study's model")
    recipe: dict[str, Any] = Field(default={}, description="what is other than in the study's recipe")

    @field_validator("method")
    @classmethod
    def _method_exists(cls, method: str) -> str:
        return method if method == DENSE else known(method)

    @model_validator(mode="after")
    def _keys_are_known(self) -> Any:
        if self.method == DENSE and (self.densities or self.start):
            raise ValueError(f"{self.label}: a dense model has no densities and no start; leave them out")
        if "density" in self.options and its.shares(self.method) == ("density",):
            raise ValueError(f"{self.label}: a setting has a list of densities; write `densities: [0.3]`, say")
        unknown = next((name for name in self.options if self.method == DENSE), None)
        if unknown:
            raise ValueError(
                f"{self.label}: there is no key '{unknown}'; {near(unknown, type(self).model_fields, 'keys')}"
            )
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The method's own arguments."""
        return dict(self.model_extra)


@dataclass(frozen=True)
class Planned:
    """A run of a study: where it is reported, and the run that it starts from."""

    run: Run
    label: str
    group: Group
    start: str | None = None  # the key of that run

    @property
    def key(self) -> str:
        """What the run's files are called."""
        return self.run.key


class Study(Strict):
    """All of `params.yaml`."""

    data: str
    model: Model
    recipe: Recipe = Field(description="the same for every method")
    seeds: Seeds = Field(min_length=1)
    densities: Densities = Field(default=(), description="of the weights; settings may have others")
    settings: tuple[Setting, ...]
    reference: str | None = Field(default=None, description="the label that others are compared with, beside dense")
    rival: str | None = Field(default=None, description="the label whose duel with the reference has a section")

    @field_validator("densities")
    @classmethod
    def _densities_are_sparse(cls, densities: Densities) -> Densities:
        if 1.0 in densities:
            raise ValueError("a density of 1 is the dense baseline, which every study has")
        return densities

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Any:
        _refuse_double([setting.label for setting in self.settings], "settings are called", "label")
        dense = [setting.label for setting in self.settings if setting.method == DENSE and setting.group == "weights"]
        if len(dense) != 1:
            raise ValueError(f"settings: {len(dense)} are dense and of the group weights; one should be, the baseline")
        compared = [
            setting.label for setting in self.settings if setting.group == "weights" and setting.label != dense[0]
        ]
        for role in ("reference", "rival"):
            label = getattr(self, role)
            if label is not None and label not in compared:
                raise ValueError(
                    f"{role}: no setting of single weights is called '{label}'; {near(label, compared, 'labels')}"
                )
        _refuse_double([planned.key for planned in self.runs], "runs would have the files of", "name")
        return self

    @property
    def baseline(self) -> str:
        """The label of the dense setting that all others are compared with."""
        return next(
            setting.label for setting in self.settings if setting.method == DENSE and setting.group == "weights"
        )

    @cached_property
    def runs(self) -> tuple[Planned, ...]:
        """Every run, in the order of the settings, densities and seeds."""
        return tuple(planned for setting in self.settings for planned in self._runs_of(setting))

    def among(self, *groups: Group) -> list[Planned]:
        """The runs of these groups."""
        return [planned for planned in self.runs if planned.group in groups]

    def _runs_of(self, setting: Setting) -> Iterator[Planned]:
        start, shared = self._start_of(setting), self._shared(setting)
        densities = (1.0,) if setting.method == DENSE else setting.densities or self.densities
        for density, seed in product(densities, setting.seeds or self.seeds):
            values = shared | {"density": density, "seed": seed}
            if setting.name:
                values["name"] = f"{setting.name}-{key(DENSE if density == 1 else '', density, seed).split('-', 1)[1]}"
            run = _parsed(Run, values, setting.label)
            yield Planned(run, setting.label, setting.group, start and self._key_of(start, seed, run, setting.label))

    def _shared(self, setting: Setting) -> dict[str, Any]:
        """What all runs of a setting are made of."""
        recipe = _parsed(Recipe, _merged(self.recipe.model_dump(), setting.recipe), f"{setting.label}: recipe")
        return {
            "method": setting.method,
            "options": setting.options,
            "model": _parsed(Model, self.model.model_dump() | setting.model, f"{setting.label}: model"),
            "recipe": recipe.model_copy(update={"epochs": self._epochs(setting, recipe.epochs)}),
        }

    def _epochs(self, setting: Setting, total: int) -> int:
        """The setting's share of the epochs, or what its start has left of them: of 13, a half has 6 and leaves 7."""
        start = self._start_of(setting)
        if setting.share is None and start is not None:
            epochs = total - self._epochs(start, total)
        else:
            epochs = int((setting.share or 1) * total)
        if epochs < 1:
            raise ValueError(f"settings: {setting.label} is left with none of {total} epochs; give it more, or a share")
        return epochs

    def _start_of(self, setting: Setting) -> Setting | None:
        if setting.start is None:
            return None
        dense = {each.label: each for each in self.settings if each.method == DENSE}
        if setting.start not in dense:
            said = near(setting.start, dense, "dense settings")
            raise ValueError(f"settings: {setting.label} starts from '{setting.start}', which is none; {said}")
        return dense[setting.start]

    def _key_of(self, start: Setting, seed: int, run: Run, label: str) -> str:
        """The key of the run that a run starts from: of the same seed and model."""
        for planned in self._runs_of(start):
            if planned.run.seed == seed and planned.run.model == run.model:
                return planned.key
        raise ValueError(
            f"settings: {label} starts from {start.label}, which has no model of its kind with seed {seed}"
        )


def _refuse_double(names: list[str], what: str, remedy: str) -> None:
    if double := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"settings: several {what} '{double[0]}'; give each a {remedy} of its own")


def _parsed(kind: type[Strict], values: Mapping[str, Any], where: str) -> Any:
    try:
        return parse(kind, dict(values), where)
    except ValueError as error:  # a sentence, of which another is made
        raise ValueError(f"settings: {str(error).rstrip('.')}") from None


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values with changes put in, mapping by mapping."""
    both = {
        name: _merged(values[name], change)
        if isinstance(change, Mapping) and isinstance(values.get(name), Mapping)
        else change
        for name, change in changes.items()
    }
    return {**values, **both}


def load(path: str | Path = "params.yaml") -> Study:
    """Read and check a study.

    Raises ValueError, in one sentence, for a file that is no mapping, an unknown key or method, a value out of range.
    """
    return read(path, Study)
