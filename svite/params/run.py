"""One training run as data: what its result is a function of, checked at once. Imports no torch."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from svite.params import options as its
from svite.params.recipe import Fraction, Images, Model, Place, Recipe, Strict, near

DENSE = "dense"
METHODS = tuple(sorted(path.stem for path in its.FOLDER.glob("[a-z]*.py")))
LONGEST = 200  # bytes: endings, and those of files half written, come after it, and file systems take 255


def _file_name(name: str) -> str:
    if not name.isprintable() or {*name} & {*"/\\"} or name[:1] in ("", ".", "-") or len(name.encode()) > LONGEST:
        raise ValueError(
            f"should be the name of a file: printable, of at most {LONGEST} bytes, without slashes, and no dot or dash "
            "at its start"
        )
    return name


FileName = Annotated[str, AfterValidator(_file_name)]


def known(method: str) -> str:
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
        return method if method == DENSE else known(method)

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
    return f"{method}-{seed}" if method == DENSE else f"{method}-{density:g}-{seed}{its.words(options)}"


class Training(Run):
    """One run by itself, with its data: what `svite train` reads."""

    data: Place | Images = Field(description="a folder that is small enough for memory, or images read as needed")
    start: Place | None = Field(default=None, description="a trained model of svite's to start from")

    @property
    def run(self) -> Run:
        """The run without its data."""
        return Run(**{name: getattr(self, name) for name in Run.model_fields})
