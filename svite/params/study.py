"""The study as `params.yaml` states it, and the runs that follow from it. Imports no torch."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from svite.params import options as its
from svite.params.recipe import Fraction, Images, Model, Place, PositiveInt, Recipe, Strict, near, read

DENSE, HALF = "dense", "half"
METHODS = tuple(sorted(p.stem for p in (Path(__file__).parents[1] / "methods").glob("[a-z]*.py")))


LONGEST = 200  # bytes: endings, and those of files half written, come after it, and file systems take 255


def _file_name(name: str) -> str:
    if not name.isprintable() or {*name} & {*"/\\"} or name[:1] in ("", ".", "-") or len(name.encode()) > LONGEST:
        raise ValueError(
            f"should be the name of a file: printable, of at most {LONGEST} bytes, without slashes, and no dot or dash "
            "at its start"
        )
    return name


FileName = Annotated[str, AfterValidator(_file_name)]


def _known(method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"there is no method '{method}'; {near(method, (DENSE, *METHODS), 'methods')}")
    return method


class Run(Strict):
    """One training run: everything that its result is a function of, data aside."""

    method: str
    options: dict[str, Any] = Field(default={}, description="the method's own arguments: fraction: 0.3, pool: uniform")
    density: Fraction = 1.0
    seed: int = Field(default=0, ge=0, lt=2**32)
    model: Model
    recipe: Recipe = Recipe()
    name: FileName | None = Field(default=None, description="the run's key, where it is not method-density-seed")

    @field_validator("method")
    @classmethod
    def _method_exists(cls, method: str) -> str:
        return method if method in (DENSE, HALF) else _known(method)

    @field_validator("options")
    @classmethod
    def _options_are_plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        return its.plain(options)

    @model_validator(mode="after")
    def _the_method_takes_its_options(self) -> Any:
        if self.method in METHODS:
            its.refuse_wrong(self.method, self.options)
        elif self.options:
            raise ValueError(f"options: {self.method} has none")
        if len(self.key.encode()) > LONGEST:
            raise ValueError(f"options: with them in their names its files' pass {LONGEST} bytes; give the run a name")
        return self

    @property
    def key(self) -> str:
        """What the run's files are called."""
        return self.name or key(self.method, self.density, self.seed, self.options)


def key(method: str, density: float, seed: int, options: Mapping[str, Any] = {}) -> str:
    """The name of a run's files.

    >>> key("svite", 0.3, 0), key("svite", 0.3, 0, {"pool": "uniform"}), key("dense", 1.0, 2)
    ('svite-0.3-0', 'svite-0.3-0-pool-uniform', 'dense-2')
    """
    return f"{method}-{seed}" if method in (DENSE, HALF) else f"{method}-{density:g}-{seed}{its.words(options)}"


class Training(Run):
    """One run by itself, with its data: what `svite train` reads."""

    data: Place | Images = Field(description="a folder that is small enough for memory, or images read as needed")
    start: Place | None = Field(default=None, description="a trained model of svite's to start from")

    @property
    def run(self) -> Run:
        """The run without its data."""
        return Run(**{name: getattr(self, name) for name in Run.model_fields})


class Grid(Strict):
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


class Pair(Strict):
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


class Study(Strict):
    """All of `params.yaml`."""

    data: str
    model: Model
    recipe: Recipe
    grid: Grid
    pair: Pair


def load(path: str | Path = "params.yaml") -> Study:
    """Read and check a study.

    Raises ValueError, in one sentence, for a file that is no mapping, an unknown key or method, a value out of range.
    """
    return read(path, Study)
