"""What the tutorial on fast models draws: speed against sparsity, by layer and end to end, and a study's models."""

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from svite.deployment.choose import clocked, columns_like, seconds
from svite.deployment.compiled import kernels_are_there
from svite.deployment.deploy import deploy
from svite.deployment.weights import FORMATS
from svite.io.saved import load, save
from svite.methods import omp
from svite.params.study import Study
from svite.sparsity.pool import uniform

if TYPE_CHECKING:
    import pandas as pd

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
BATCH = 64  # of a study's models


def model_of(name: str) -> nn.Module:
    """timm's model with random weights: how fast it runs depends on sizes and zeros only."""
    return timm.create_model(name).eval()


def pruned(model: nn.Module, sparsity: float) -> nn.Module:
    """A copy with this share of each layer of its blocks at zero."""
    copied = deepcopy(model)
    omp(copied, 1 - sparsity, pool=uniform, layers=["blocks.*"])
    return copied.eval()


def checkpoint(name: str, sparsity: float, path: str | Path) -> Path:
    """The file of a model that was pruned to this sparsity, with its masks."""
    model = model_of(name)
    sparsifier = omp(model, 1 - sparsity, pool=uniform, layers=["blocks.*"])
    save(model, path, sparsifier, build=(name, {}))
    return Path(path)


def layers(model: nn.Module, batch: int, sparsities: Sequence[float] = SPARSITIES) -> "pd.DataFrame":
    """Each shape of linear layer in a model's blocks: the speed of CSR over the dense layer, by sparsity."""
    import pandas as pd

    kernels_are_there()
    shapes = {tuple(m.weight.shape) for m in model.blocks.modules() if isinstance(m, nn.Linear)}
    rows = []
    for shape in sorted(shapes):
        weight, x = torch.randn(shape), columns_like(model, batch, shape[1])
        dense = seconds(FORMATS["dense"](weight, None), x)
        for sparsity in sparsities:
            sparse = FORMATS["csr"](weight * (torch.rand(shape) >= sparsity), None)
            rows.append({"layer": "{}x{}".format(*shape), "sparsity": sparsity, "speed": dense / seconds(sparse, x)})
    return pd.DataFrame(rows)


def models(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    sparsities: Sequence[float] = SPARSITIES,
) -> "pd.DataFrame":
    """The whole model: the speed of what `deploy` makes of it over the dense model in PyTorch, by sparsity."""
    import pandas as pd

    calls = {sparsity: deploy(pruned(model, sparsity), images) for sparsity in sparsities}
    taken = by_turns({0.0: model} | calls, images)
    return pd.DataFrame([{"sparsity": sparsity, "speed": taken[0.0] / taken[sparsity]} for sparsity in sparsities])


def by_turns(calls: dict, images: Tensor, rounds: int = 3) -> dict:
    """The shortest of some seconds that each call took, all taking turns."""
    found: dict = {name: [] for name in calls}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, call in calls.items():
                found[name].append(clocked(call, images))
    return {name: min(values) for name, values in found.items()}


def formats(fast: nn.Module) -> "pd.Series":
    """How many layers of a deployed model run in each format."""
    import pandas as pd

    return pd.Series(fast.choice, name="layers").value_counts()


def study(asked: Study, folder: str | Path, metrics: str | Path = "metrics") -> "pd.DataFrame":
    """The first seed's models of a study, as far as they are there: accuracy, and milliseconds a batch of 64."""
    import pandas as pd

    keys = [run.key for run in asked.among("weights", "structures") if run.run.seed == asked.seeds[0]]
    paths = {name: Path(folder) / f"{name}.safetensors" for name in keys}
    there = {name: load(path)[0] for name, path in paths.items() if path.is_file()}
    if not there:
        return pd.DataFrame()
    patches = next(iter(there.values())).patch_embed
    images = torch.randn(BATCH, patches.proj.in_channels, *patches.img_size)
    taken = by_turns(there, images)
    fast = by_turns({name: deploy(model, images) for name, model in there.items()}, images)
    scores = {name: json.loads((Path(metrics) / "test" / f"{name}.json").read_text())["top1"] for name in there}
    rows = [(scores[name], 1e3 * taken[name], 1e3 * fast[name]) for name in there]
    return pd.DataFrame(rows, columns=["top1", "milliseconds", "deployed"], index=list(there)).round(3)
