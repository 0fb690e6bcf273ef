"""The test images: each model of a study on all of them, after its last epoch."""

import json
from pathlib import Path

import torch
from jaxtyping import UInt8
from safetensors.torch import save
from torch import Tensor, nn

from svite.data.memory import Data
from svite.io.files import write
from svite.params.run import Run
from svite.tokens import kept
from svite.tokens.selector import Selector
from svite.train.evaluate import Accuracy, accuracy, best, logits
from svite.train.models import load_model
from svite.vit.attention import centre_patch_maps


def keep_labels(data: Data, folder: str | Path) -> Path:
    """Write `arrays/test.safetensors` below `folder`: each test image's label, and the first image of each class.

    With it, what models said of the test images can be compared, and drawn, without the data.
    """
    path = Path(folder) / "arrays" / "test.safetensors"
    write(path, save({"labels": data.test.labels.to(torch.int16), "samples": _samples(data)}))
    return path


def _samples(data: Data) -> UInt8[Tensor, "class channel height width"]:
    """The first test image of each class."""
    labels = data.test.labels
    firsts = torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()])
    return data.test.images[firsts].contiguous()


def look(run: Run, data: Data, folder: str | Path, attended: int = 0) -> Accuracy:
    """How a trained run does on the test images, in percent.

    Writes `metrics/test/KEY.json` and `arrays/runs/KEY.safetensors` below `folder`: the five best guesses of each
    image; which patches of the first image of each class are left, if the model selects tokens; and how the centre
    patch looks at all patches, as a mean over `attended` images, if that is more than none.

    Raises FileNotFoundError or ValueError for a missing or damaged model, before anything is written.
    """
    model, _ = load_model(Path(folder) / "models" / f"{run.key}.safetensors")
    output = logits(model, data, data.test)
    found = accuracy(output, data.test.labels)
    arrays = {"predictions": best(output).to(torch.int16)} | _kept(model, data) | _attention(model, data, attended)
    scores = {"top1": round(found.top1, 4), "top5": round(found.top5, 4), "images": len(data.test)}
    write(Path(folder) / "metrics" / "test" / f"{run.key}.json", json.dumps(scores, indent=1) + "\n")
    write(Path(folder) / "arrays" / "runs" / f"{run.key}.safetensors", save(arrays))
    return found


def _kept(model: nn.Module, data: Data) -> dict[str, Tensor]:
    if not any(isinstance(module, Selector) for module in model.modules()):
        return {}
    return {"kept": kept(model, data.normalised(_samples(data)))[-1].contiguous()}


def _attention(model: nn.Module, data: Data, attended: int) -> dict[str, Tensor]:
    if not attended:
        return {}
    chosen = data.test.first(attended)
    maps = centre_patch_maps(model, data.normalised(chosen.images))
    return {"attention": maps.contiguous(), "attended": torch.tensor([len(chosen)])}
