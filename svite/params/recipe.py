"""How a model is trained, as a parameter file says it. Imports no torch."""

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from svite.params.yaml import yaml_value

PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]


MANY = 30  # words that a person may be shown
SHORT = Repr()  # a few lines of YAML can stand for more lists than fit into memory
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 100, 100


def _on_disk(path: str) -> str:
    if not path.isprintable():
        raise ValueError("should be printable, as every path is")
    return path


Place = Annotated[str, AfterValidator(_on_disk)]


class Strict(BaseModel):
    """Parameters without an unknown key among them, and of finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def of(cls, **values: Any) -> Any:
        """As the constructor; ValueError with one sentence for a human where that fails."""
        return parse(cls, values, cls.__name__.lower())


class Views(Strict):
    """timm's random views of training images that are read from files; evaluation sees the centre."""

    scale: tuple[Fraction, Fraction] = Field(default=(0.08, 1.0), description="area of the random crop")
    flip: Share = 0.5
    jitter: Amount = 0.3
    auto: str | None = Field(default="rand-m9-mstd0.5-inc1", description="automatic augmentation, in timm's words")
    erase: Share = Field(default=0.25, description="probability of random erasing")
    repeats: PositiveInt = Field(default=1, description="views of an image in an epoch of fewer images")
    interpolation: str = "bicubic"


class Mixing(Strict):
    """timm's mixup and cutmix of the images of a batch."""

    mixup: Amount = 0.8
    cutmix: Amount = 1.0
    probability: Share = 1.0
    switch: Share = Field(default=0.5, description="how often cutmix, where both are on")

    @model_validator(mode="after")
    def _mixes(self) -> Any:
        if not (self.mixup or self.cutmix):
            raise ValueError("mixup and cutmix are both 0; leave mixing out where nothing is to be mixed")
        return self


class Distillation(Strict):
    """A teacher: a model of timm's, or a file that `svite.save` wrote."""

    teacher: Place
    kind: Literal["hard", "soft"] = "hard"
    share: Share = Field(default=0.5, description="of the loss that is the teacher's")
    temperature: PositiveFloat = 1.0


class Recipe(Strict):
    """How a model is trained; the same for every method of a study."""

    epochs: PositiveInt = 2
    batch: PositiveInt = Field(default=64, description="images a step, over all processes")
    optimizer: str = "muon"
    lr: PositiveFloat = 0.01
    lr_min: Amount = 0.0
    weight_decay: Amount = 0.05
    layer_decay: Fraction | None = None
    warmup: Share = 0.1
    smoothing: Share = 0.1
    clip: PositiveFloat | None = None
    rotate: Annotated[float, Field(ge=0, description="degrees, for images in memory")] = 10.0
    zoom: Share = 0.1
    shift: Annotated[float, Field(ge=0, description="pixels")] = 2.0
    interval: PositiveInt = Field(default=40, description="steps between topology updates")
    images: PositiveInt | None = Field(default=None, description="train on the first so many images only")
    views: Views = Views()
    mixing: Mixing | None = None
    distillation: Distillation | None = None
    ema: Fraction | None = Field(default=None, description="decay of the averaged weights, which are what counts")
    accumulate: PositiveInt = Field(default=1, description="parts that a process's share of a batch is cut into")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False

    @model_validator(mode="after")
    def _batch_divides(self) -> Any:
        if self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} does not divide into {self.accumulate} parts")
        if self.mixing and self.batch // self.accumulate % 2:
            raise ValueError("mixing pairs the images of a batch; it needs an even number of them")
        return self


class Images(Strict):
    """Images that are read as they are needed: a folder of class folders, tar files, or what timm's names stand for.

    `name` is empty for `root/train` and `root/validation`, each a folder of class folders or a tar file of them; for
    others it is timm's: `torch/cifar10` (whose `validation` is its test set), `hfds/owner/name`, `hfds/./folder`;
    `root` is then where the data set is, or its cache. Nothing is downloaded for `torch/`.

    `shards` are tar files of WebDataset, on a disk or in any storage of fsspec (`s3://bucket/folder`): `train` and
    `validation` are patterns below `root`, `train-{0000..1023}.tar` say, or splits of timm's `_info.json` there. Where
    none tells how many samples a shard has, all are read once to count.
    """

    name: Place = ""
    root: Place
    train: Place = "train"
    validation: Place = "validation"
    workers: Annotated[int, Field(ge=0)] = Field(default=4, description="processes that decode, a training process")
    unreadable: Literal["fatal", "skip"] = Field(default="fatal", description="what an image is that can't be read")
    cache: Place | None = Field(default=None, description="folder for shards from elsewhere; ~/.cache/svite")
    cache_gigabytes: PositiveFloat = Field(default=20.0, description="bound of that folder; at least four shards")


class Model(Strict):
    """A timm model and its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str
    pretrained: bool = Field(default=False, description="start from timm's own weights")

    @model_validator(mode="after")
    def _finite(self) -> Any:
        for name, value in self.arguments.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} should be a finite number")
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """What goes to `timm.create_model` beside the name."""
        return dict(self.model_extra)


def near(word: object, known: Iterable[str], what: str) -> str:
    """How a complaint of an unknown word ends: with those it is like or, if it is like none, with all of them.

    >>> near("epoch", ["batch", "epochs"], "keys"), near("x", ["batch", "epochs"], "keys")
    ('the nearest is epochs', 'the keys are batch, epochs')
    """
    found = get_close_matches(str(word).lower(), known := list(known), 3)
    if not found:
        return f"the {what} are {', '.join(known[:MANY])}{', ...' if len(known) > MANY else ''}"
    return f"the nearest {'is' if len(found) == 1 else 'are'} {', '.join(found)}"


def shown(value: object) -> str:
    """A value that somebody wrote, in a few words."""
    try:
        return SHORT.repr(value)
    except ValueError:  # it has thousands of digits, and Python refuses to write them
        return "a number of thousands of digits"


def sentence(error: ValidationError, where: str, kind: type[Strict]) -> str:
    """The first complaint of a validation, in one sentence."""
    found = error.errors()
    meant = [each for each in found if not (each["type"] == "string_type" and isinstance(each["input"], dict))]
    first = (meant or found)[0]
    loc = [*first["loc"]]
    if loc[:1] == ["data"]:
        del loc[1:2]  # which of the two it can be
    if not loc:  # of no key by itself: it says which
        return f"{where}: {first['msg'].removeprefix('Value error, ')}."
    got = f"(got {shown(first['input'])})"
    if first["type"] == "extra_forbidden":
        said = f"is not a known key {got}; {near(loc[-1], _keys(kind, loc[:-1]), 'keys')}"
    else:
        said = f"{first['msg'].removeprefix('Value error, ')} {got}"
    return f"{where}: {'.'.join(map(str, loc))}: {said}."


def _keys(kind: type[Strict], place: Sequence[Any]) -> Iterable[str]:
    for name in place:
        annotation = kind.model_fields[name].annotation
        kind = next(each for each in (annotation, *get_args(annotation)) if hasattr(each, "model_fields"))
    return kind.model_fields


def parse(kind: type[Strict], values: dict[str, Any], where: str) -> Any:
    """`kind(**values)`; ValueError with one sentence for a human if that fails."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(sentence(error, where, kind)) from None


def read(path: str | Path, kind: type[Strict], changes: Sequence[str] = ()) -> Any:
    """A parameter file, with some of its values set anew: `recipe.lr=0.001`, say.

    Raises FileNotFoundError; ValueError, in one sentence, for a file that is no mapping, an unknown key, a value out of
    range.
    """
    try:
        values = yaml_value(Path(path).read_bytes(), str(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no parameter file {path}.") from None
    except OSError as error:
        raise OSError(f"The parameter file {path} can't be read: {error.strerror}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no mapping; it should have the keys {', '.join(kind.model_fields)}.")
    for change in changes:
        _set(values, change)
    return parse(kind, values, str(path))


def _set(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals:
        raise ValueError(f"'{change}' sets nothing; it should read key=value, recipe.lr=0.001 say.")
    *outer, last = key.split(".")
    for name in outer:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ValueError(f"'{change}' sets a part of '{name}', which is {shown(values)} and has no parts.")
    value, before = yaml_value(text, shown(change)), values.get(last)
    if isinstance(before, dict) and isinstance(value, str):
        raise ValueError(
            f"'{change}' puts a word in the place of '{key}', which has the parts {', '.join(map(str, before))}; set "
            f"one of these, {key}.{next(iter(before), 'name')}={value} say."
        )
    values[last] = value
