"""What can't be saved or loaded is refused in one sentence that names it, and leaves nothing behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from safetensors.torch import save_file
from tiny import vit
from tiny_kinds import DEEP, KINDS, NAME, deep, masked, saved
from torch import Tensor, nn

from svite.io.container import read_container, write_container
from svite.io.saved import load, save
from svite.tokens import select
from svite.vit.gates import add_gates

# What can't be saved


def other_activation(model: nn.Module) -> None:
    model.blocks[1].mlp.act = nn.ReLU()


def parametrized(model: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(model.blocks[1].mlp.fc1)


def gated(model: nn.Module) -> None:
    model.blocks[1].attn.gates = nn.Parameter(torch.ones(2))


def other_norm(model: nn.Module) -> None:
    model.blocks[1].norm1.eps = 0.1


def scaled(model: nn.Module) -> None:
    model.blocks[1].attn.scale = torch.tensor(0.9)


def endless(model: nn.Module) -> None:
    model.norm.eps = float("inf")


def stale_width(model: nn.Module) -> None:
    model.blocks[1].mlp.fc1.weight = nn.Parameter(torch.ones(64, 15))


def extra(model: nn.Module) -> None:
    model.blocks[1].adapter = nn.Sequential(nn.Linear(16, 16), nn.Tanh())


def fewer(model: nn.Module) -> None:
    del model.blocks[2]


def own_scores(model: nn.Module) -> None:
    class Mine(nn.Module):
        pass

    select(model, 0.5, at=1, scorer=lambda model, index: Mine())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_activation, "blocks.1.mlp.act is a ReLU, and timm builds a GELU"),
        (parametrized, "blocks.1.mlp.fc1 is a ParametrizedLinear, and timm builds a Linear"),
        (gated, r"blocks.1.attn.gates is of shape \(2,\), and timm builds none"),
        (add_gates, r"blocks.0.attn.qkv.gate is of shape \(16,\), and timm builds none"),
        (other_norm, "blocks.1.norm1.eps is 0.1, and timm builds it with 1e-06"),
        (scaled, r"blocks.1.attn.scale is tensor\(0.9000\), and timm builds it with 0\.\d+"),
        (endless, "norm.eps is inf, and timm builds it with 1e-06"),
        (stale_width, r"blocks.1.mlp.fc1.weight is of shape \(64, 15\), and timm builds one of shape \(64, 16\)"),
        (extra, "blocks.1.adapter is a Sequential, and timm builds nothing"),
        (fewer, "blocks.2 is missing"),
        (own_scores, "blocks.1.selector.scorer is a Mine, not one of Attentive, Learned"),
    ],
)
def test_what_has_no_word_is_refused_by_name(tmp_path, change, said):
    model = deep()
    change(model)
    with pytest.raises(ValueError, match=f"^This model can't be saved as timm's '{NAME}' with .*: {said}.$"):
        save(model, tmp_path / "run.safetensors", build=(NAME, DEEP))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (("vit_tiny_patch16_224", {**DEEP, "embed_dim": 24}), r"cls_token is of shape \(1, 1, 16\), .* \(1, 1, 24\)"),
        (("vit_tiny_patch16_224", {**DEEP, "img_size": 16}), r"pos_embed is of shape \(1, 10, 16\), .* \(1, 17, 16\)"),
        (("vit_tiny_patch16_224", {**DEEP, "num_classes": 7}), "num_classes is 5, and timm builds it with 7"),
        (("vit_tiny_patch16_224", {**DEEP, "num_heads": 4}), "blocks.0.attn.head_dim is 8, and timm builds it with 4"),
        (("vit_tiny_patch16_224", {**DEEP, "depth": 4}), "blocks.3 is missing"),
        (("vit_tiny_patch16_224", {**DEEP, "drop_rate": 0.1}), "head_drop.p is 0.0, and timm builds it with 0.1"),
        (("resnet18", {}), "it is a VisionTransformer, and timm builds a ResNet"),
        (("vit_tiny", {}), "timm .* has no model of that name"),
        ((NAME, {**DEEP, "colour": "red"}), "timm .* fails to build it .*colour.*"),
        ((NAME, {**DEEP, "norm_layer": nn.LayerNorm}), "norm_layer=.* is no plain value .*"),
    ],
)
def test_a_build_of_another_model_is_refused_by_name(tmp_path, build, said):
    with pytest.raises(ValueError, match=f"^This model can't be saved as timm's '{build[0]}' with .*: {said}.$"):
        save(deep(), tmp_path / "run.safetensors", build=build)
    assert not list(tmp_path.iterdir())


def test_masks_of_another_model_are_refused(tmp_path):
    kind = masked(vit(depth=3, embed_dim=24))
    with pytest.raises(ValueError, match=r"has no patch_embed.proj.weight of shape \(24, 1, 4, 4\)"):
        save(deep(), tmp_path / "run.safetensors", kind.sparsifier, build=(NAME, DEEP))


def test_dead_weights_that_are_not_zero_are_refused_and_the_old_file_stays(tmp_path):
    kind = masked(deep())
    path = saved(tmp_path, kind)
    before = path.read_bytes()
    with torch.no_grad():
        kind.model.head.weight.fill_(1.0)
    with pytest.raises(ValueError, match=r"Dead weights of head.weight are not zero; call `sparsifier.apply"):
        saved(tmp_path, kind)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [{1: "an integer key"}, float("nan"), Path("here"), [torch.ones(1)]])
def test_a_note_that_json_cannot_hold_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"The note .* can't be saved; only plain values can"):
        save(deep(), tmp_path / "run.safetensors", build=(NAME, DEEP), note={"mine": value})
    assert not list(tmp_path.iterdir())


# What can't be loaded


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("intact"), KINDS["all at once"]())


def refused(path: Path, said: str) -> None:
    """Loading says this, in one sentence that begins with the file."""
    with pytest.raises(ValueError, match=f"^{path} {said}") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def changed(tmp_path: Path, path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> Path:
    """A file of valid checksum with another content."""
    document, tensors = read_container(path)
    change(document, tensors)
    write_container(tmp_path / "changed.safetensors", document, tensors)
    return tmp_path / "changed.safetensors"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no saved model at .*run\.safetensors"):
        load(tmp_path / "run.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_damaged(tmp_path, intact, kept):
    path = tmp_path / "run.safetensors"
    path.write_bytes(intact.read_bytes()[:kept])
    refused(path, "is damaged")


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_one_flipped_bit_is_seen_wherever_it_is(intact, where, bit):
    content = bytearray(intact.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    path = intact.with_name("flipped.safetensors")
    path.write_bytes(content)
    refused(path, "(is damaged|has format|holds tensors that svite.save did not write)")


def test_text_is_no_model(tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_text("This is no model. " * 10)
    refused(path, "is damaged, or no safetensors file")


def test_tensors_of_somebody_else_are_no_model(tmp_path):
    save_file({"head.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", "holds tensors that svite.save did not write")


def test_a_later_format_asks_for_a_later_svite(tmp_path, intact):
    refused(changed(tmp_path, intact, lambda document, _: document.update(format=2)), "has format 2; this svite reads")


def built_with(**arguments: object) -> Callable[[dict, dict], None]:
    return lambda document, _: document["spec"]["arguments"].update(arguments)


def edited(at: str, **edit: object) -> Callable[[dict, dict], None]:
    return lambda document, _: document["spec"]["edits"].append({"at": at, **edit})


WRONG = {
    "another width": (built_with(embed_dim=24), r"cls_token is of shape \(1, 1, 16\), .* one of shape \(1, 1, 24\)"),
    "another depth": (built_with(depth=4), "blocks.3.norm1.weight is missing, and timm builds one of shape .*"),
    "no such model": (lambda d, _: d["spec"].update(name="vit_future"), "timm .* has no model of that name"),
    "a place on the hub": (lambda d, _: d["spec"].update(name="hf-hub:a/b"), "timm .* has no model of that name"),
    "weights to fetch": (built_with(pretrained=True), "pretrained=True is no plain value that describes .*"),
    "weights to unpickle": (built_with(checkpoint_path="x.pth"), "checkpoint_path='x.pth' is no plain value .*"),
    "an unknown argument": (built_with(colour="red"), "timm .* fails to build it .*"),
    "a tensor too few": (lambda _, t: t.pop("norm.weight"), "norm.weight is missing, and timm builds .*"),
    "a tensor too many": (lambda _, t: t.update(x=torch.ones(2)), r"x is of shape \(2,\), and timm builds none"),
    "a value too few": (lambda _, t: t.update({"head.weight": torch.ones(1)}), "head.weight holds 1 elements, .*"),
    "bits too few": (
        lambda _, t: t.update({"alive:head.weight": t["alive:head.weight"][1:]}),
        r"the bits of head.weight are not one for each element of shape \(5, 16\)",
    ),
    "bits of nothing": (lambda _, t: t.pop("alive:head.weight"), "head.weight has a shape of its own, and not .*"),
    "an unknown setting": (edited("blocks.0", set={"forward": 1}), "blocks.0.forward can't be set to 1"),
    "a setting of text": (edited("", set={"grad_checkpointing": "x"}), "grad_checkpointing can't be set to 'x'"),
    "an unknown word": (edited("head", put=["Conv9d", {}]), "Conv9d is no module that a file can hold; .*"),
    "an unknown scorer": (
        edited("blocks.0.selector", put=["Selector", {"keep": 0.5, "scorer": "Eye"}]),
        "blocks.0.selector.scorer is a Eye, not one of Attentive, Learned",
    ),
    "an edit of nothing": (edited("blocks.9.attn", set={"num_heads": 1}), "AttributeError.*9.*"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_for_another_architecture_is_refused_by_name(tmp_path, intact, monkeypatch, name):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("something was unpickled"))
    change, said = WRONG[name]
    refused(changed(tmp_path, intact, change), f"can't be built again with timm .*: {said}.$")
