"""The study as `params.yaml` states it, and the runs that follow from it. Imports no torch."""

from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, field_validator

DENSE, HALF = "dense", "half"
METHODS = tuple(sorted(p.stem for p in (Path(__file__).parent / "methods").glob("[a-z]*.py")))

Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of(cls, **values: Any) -> Any:
        """As the constructor; ValueError with one sentence for a human where that fails."""
        return parse(cls, values, cls.__name__.lower())


class Recipe(_Strict):
    """How a model is trained; the same for every method of a study."""

    epochs: PositiveInt = 2
    batch: PositiveInt = 64
    optimizer: str = "muon"
    lr: PositiveFloat = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: Share = 0.1
    smoothing: Share = 0.1
    clip: PositiveFloat | None = None
    rotate: Annotated[float, Field(ge=0, description="degrees")] = 10.0
    zoom: Share = 0.1
    shift: Annotated[float, Field(ge=0, description="pixels")] = 2.0
    interval: PositiveInt = Field(default=40, description="steps between topology updates")
    images: PositiveInt | None = Field(default=None, description="train on the first so many images only")


class Model(_Strict):
    """A timm model and its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """What goes to `timm.create_model` beside the name."""
        return dict(self.model_extra)


def _known(method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"there is no method '{method}'; the methods are {', '.join(METHODS)}")
    return method


class Run(_Strict):
    """One training run: everything that its result is a function of, data aside."""

    method: str
    density: Fraction = 1.0
    seed: int = 0
    model: Model
    recipe: Recipe = Recipe()
    name: str | None = Field(default=None, description="the run's key, where it is not method-density-seed")

    @field_validator("method")
    @classmethod
    def _method_exists(cls, method: str) -> str:
        return method if method in (DENSE, HALF) else _known(method)

    @property
    def key(self) -> str:
        """What the run's files are called."""
        return self.name or key(self.method, self.density, self.seed)


def key(method: str, density: float, seed: int) -> str:
    """The name of a run's files.

    >>> key("svite", 0.3, 0), key("dense", 1.0, 2)
    ('svite-0.3-0', 'dense-2')
    """
    return f"{method}-{seed}" if method in (DENSE, HALF) else f"{method}-{density:g}-{seed}"


class Grid(_Strict):
    """Which methods, densities and seeds are run.

    Methods that take heads, neurons or tokens away have densities of their own, `kept`: half of four heads is two,
    a twentieth of them is none.
    """

    scratch: tuple[str, ...]
    pretrained: tuple[str, ...]
    densities: tuple[Fraction, ...]
    structured: tuple[str, ...] = ()
    kept: tuple[Fraction, ...] = ()
    seeds: tuple[int, ...]

    @field_validator("scratch", "pretrained", "structured")
    @classmethod
    def _methods_exist(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known(method) for method in methods)

    @field_validator("densities", "kept")
    @classmethod
    def _densities_are_sparse(cls, densities: tuple[float, ...]) -> tuple[float, ...]:
        if 1.0 in densities:
            raise ValueError("a density of 1 is the dense baseline, which every study has")
        return densities

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods that prune single weights, those from scratch first."""
        return self.scratch + self.pretrained

    @property
    def settings(self) -> list[tuple[str, float]]:
        """Every sparse method with each of its densities."""
        return [*product(self.methods, self.densities), *product(self.structured, self.kept)]

    def runs(self, model: Model, recipe: Recipe) -> list[Run]:
        """Every run of the results table, the dense baseline first."""
        runs = [Run(method=DENSE, seed=seed, model=model, recipe=recipe) for seed in self.seeds]
        sparse = product(self.settings, self.seeds)
        return runs + [Run(method=m, density=d, seed=s, model=model, recipe=recipe) for (m, d), s in sparse]


class Pair(_Strict):
    """The larger dense and SViTE pair whose attention is drawn."""

    density: Fraction
    model: Model
    recipe: Recipe
    images: PositiveInt = 100

    @property
    def runs(self) -> list[Run]:
        """The two runs."""
        shared = {"model": self.model, "recipe": self.recipe}
        return [
            Run(method=DENSE, name="pair-dense", **shared),
            Run(method="svite", density=self.density, name="pair-svite", **shared),
        ]


class Study(_Strict):
    """All of `params.yaml`."""

    data: str
    model: Model
    recipe: Recipe
    grid: Grid
    pair: Pair


def sentence(error: ValidationError, where: str) -> str:
    """The first complaint of a validation, in one sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    said = "is not a known key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    return f"{where}: {place}: {said} (got {first['input']!r})."


def parse(kind: type[_Strict], values: dict[str, Any], where: str) -> Any:
    """`kind(**values)`; ValueError with one sentence for a human if that fails."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(sentence(error, where)) from None


def load(path: str | Path = "params.yaml") -> Study:
    """Read and check a study.

    Raises ValueError, in one sentence, for a file that is no mapping, an unknown key or method, a value out of range.
    """
    from ruamel.yaml import YAML, YAMLError

    try:
        values = YAML(typ="safe").load(Path(path))
    except YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no mapping; it should have the keys {', '.join(Study.model_fields)}.")
    return parse(Study, values, str(path))
