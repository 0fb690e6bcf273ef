"""Models that svite can't read are refused in one sentence that names the layer, before any work or file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from tiny import VIT, batch, vit
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import svite
from svite.io import export
from svite.sparsity.ready import Opaque
from svite.vit.cost import macs
from svite.vit.mode import evaluating

BUILD = ("vit_tiny_patch16_224", VIT)
LAYER = r"blocks\.0\.mlp\.fc1"
IMAGES = batch(0)[0]


class Packed(Tensor):
    """A weight that calls itself float32, as torchao's quantized tensors do."""


def packed() -> nn.Module:
    model = vit()
    layer = model.blocks[0].mlp.fc1
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Packed))
    return model


def of_bytes() -> nn.Module:
    model = vit()
    model.blocks[0].mlp.fc1.weight = nn.Parameter(torch.zeros(64, 16, dtype=torch.int8), requires_grad=False)
    return model


class Linear(nn.Module):
    """Without parameters; it says that it comes from where torch keeps its quantized layers."""

    __module__ = "torch.ao.nn.quantized.dynamic.modules.linear"


def without_parameters() -> nn.Module:
    model = vit()
    model.blocks[0].mlp.fc1 = Linear()
    return model


def deployed() -> nn.Module:
    model = vit()
    model.blocks[0].mlp.fc1 = Opaque()
    return model


def masked_by_torch() -> nn.Module:
    model = vit()
    prune.l1_unstructured(model.blocks[0].mlp.fc1, "weight", 0.5)
    return model


def normed() -> nn.Module:
    model = vit()
    parametrizations.weight_norm(model.blocks[0].mlp.fc1)
    return model


Use = Callable[[nn.Module, Path], object]
USES: dict[str, Use] = {
    "cost": lambda model, path: svite.cost(model),
    "shrink": lambda model, path: svite.shrink(model),
    "gather_inputs": lambda model, path: svite.gather_inputs(model),
    "save": lambda model, path: svite.save(model, path, build=BUILD),
    "deploy": lambda model, path: svite.deploy(model, IMAGES),
    "export": lambda model, path: svite.export(model, path, IMAGES),
    "tokens.select": lambda model, path: svite.tokens.select(model, 0.5, 0),
}
RUNS: dict[str, Use] = {
    "attention_maps": lambda model, path: svite.attention_maps(model, IMAGES),
    "verify": lambda model, path: svite.verify(vit(), model, IMAGES),
}
UNREADABLE = {
    "a quantized weight": (packed, rf"{LAYER}\.weight is a test_opaque\.Packed", USES),
    "a weight of bytes": (of_bytes, rf"{LAYER}\.weight is of torch\.int8", USES),
    "a quantized layer": (without_parameters, rf"{LAYER} is a torch\.ao\.nn\.quantized\.[\w.]+\.Linear", USES),
    "deployed": (deployed, rf"{LAYER} is deployed", {**USES, "attention_maps": RUNS["attention_maps"]}),
    "no values": (
        lambda: vit().to("meta"),
        "cls_token is on the meta device and has no values",
        {name: use for name, use in {**USES, **RUNS}.items() if name != "tokens.select"},
    ),
    "torch's masks": (
        masked_by_torch,
        "torch.nn.utils.prune holds the model's masks",
        {name: use for name, use in USES.items() if name not in ("save", "export", "tokens.select")},
    ),
    "a parametrization": (
        normed,
        rf"{LAYER} has a parametrized weight",
        {name: use for name, use in USES.items() if name not in ("save", "export", "tokens.select")},
    ),
}
CASES = {
    f"{kind}, {name}": (made, message, name, use)
    for kind, (made, message, uses) in UNREADABLE.items()
    for name, use in uses.items()
}


@pytest.mark.parametrize(("made", "message", "name", "use"), CASES.values(), ids=CASES)
def test_what_cannot_be_read_is_one_sentence_and_no_file(made, message, name, use, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_write", None)  # it takes a second even for a model of these sizes
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{message}[^\n]*[.]$") as refused:
        use(made(), tmp_path / "file")
    assert f"svite.{name}" in str(refused.value) or "make " in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_model_without_values_is_counted_and_may_get_selectors():
    meta = timm.create_model(BUILD[0], **BUILD[1], device="meta")
    assert macs(meta).total() == macs(vit()).total()
    assert svite.tokens.select(meta, 0.5, 0) is meta


def test_a_feature_extractor_is_refused_before_the_export(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_write", None)
    model = timm.create_model(BUILD[0], **VIT, features_only=True, out_indices=(0,))
    with pytest.raises(ValueError, match=r"^FeatureGetterNet gives a list and no tensor of logits"):
        svite.export(model, tmp_path / "file", IMAGES)
    with pytest.raises(ValueError, match=r"^VisionTransformer can't be exported \(AssertionError: Input height \(5\)"):
        svite.export(vit(), tmp_path / "file", IMAGES[:, :, :5])
    assert not list(tmp_path.iterdir())


def greedy() -> nn.Module:
    """A model that asks for a petabyte, for more than one image."""
    model = vit()
    forward = model.patch_embed.forward
    model.patch_embed.forward = lambda x: torch.empty(2**48 if len(x) > 1 else 0) is None or forward(x)
    return model


@pytest.mark.parametrize("name", ["attention_maps", "verify", "deploy", "tokens.kept"])
def test_too_many_images_are_said_to_be_too_many(name, tmp_path):
    kept = {"tokens.kept": lambda model, path: svite.tokens.kept(svite.tokens.select(model, 0.5, 0), IMAGES)}
    sentence = r"^There is too little memory [^\n]*\(torch tried to allocate \d+ \w+\); pass fewer\.$"
    with pytest.raises(MemoryError, match=sentence):
        (USES | RUNS | kept)[name](greedy(), tmp_path)


def test_other_errors_of_torch_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), evaluating(vit()):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
