"""Saved models: the same in a fresh process, small, refused by name, and nothing in a file is ever executed."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import timm
import torch
from hypothesis import example, given
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.layers import LayerScale
from tiny import VIT, adamw, dead_are_zero, run, same, vit, weights_of
from torch import Tensor, nn

from svite import methods
from svite.sparsity.pool import uniform
from svite.sparsity.rule import Prune
from svite.sparsity.schedule import once
from svite.sparsity.score import magnitude
from svite.sparsity.sparsifier import Sparsifier
from svite.store.container import read_container, write_container
from svite.store.held import held
from svite.store.pack import packed, unpacked
from svite.store.saved import load, note_of, save
from svite.store.tensors import all_tensors
from svite.tokens import Attentive, Selector, select
from svite.vit.gates import add_gates
from svite.vit.gather import gather_inputs
from svite.vit.parts import Zero
from svite.vit.shrink import shrink
from svite.vit.structure import heads

NAME = "vit_tiny_patch16_224"
DEEP = {**VIT, "depth": 3}
ROPE = {"img_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}


# Models of every kind


@dataclass
class Kind:
    """A model, its sparsifier, and how timm builds what it came from."""

    model: nn.Module
    sparsifier: Sparsifier | None = None
    build: tuple[str, dict[str, Any]] = (NAME, DEEP)


def deep() -> nn.Module:
    """Three blocks in which every bias is its own."""
    model = vit(depth=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@torch.no_grad()
def cut(model: nn.Module, branches: bool = False) -> nn.Module:
    """One head less in block 0, three neurons less in block 1, and maybe both branches of block 2 gone."""
    model.blocks[0].attn.proj.weight[:, 8:] = 0
    model.blocks[1].mlp.fc1.weight[[3, 5, 60]] = 0
    if branches:
        model.blocks[2].attn.proj.weight.zero_()
        model.blocks[2].attn.proj.bias.zero_()
        model.blocks[2].mlp.fc2.weight.zero_()
    return shrink(model, branches=branches)


def gathered() -> nn.Module:
    model = deep()
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[:, [1, 4, 15]] = 0
        model.blocks[1].mlp.fc1.weight[:, 2:] = 0
    return gather_inputs(model)


def scaled() -> nn.Module:
    model = deep()
    model.blocks[1].ls1 = LayerScale(16, init_values=0.3)
    model.blocks[2].ls2 = LayerScale(16, init_values=0.7)
    return model


def tied() -> nn.Module:
    model = deep()
    model.blocks[2].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    return model


def masked(model: nn.Module) -> Kind:
    return Kind(model, methods.omp(model, 0.1))


def headless() -> Kind:
    model = deep()
    return Kind(model, Sparsifier(model, uniform(heads(model), 0.5), Prune(magnitude), once(0)))


def rotary() -> Kind:
    torch.manual_seed(0)
    return Kind(timm.create_model("eva02_tiny_patch14_224", **ROPE), build=("eva02_tiny_patch14_224", ROPE))


KINDS: dict[str, Callable[[], Kind]] = {
    "dense": lambda: Kind(deep()),
    "masked": lambda: masked(deep()),
    "masked heads": headless,
    "zeros": lambda: Kind(masked(deep()).model),
    "shrunk": lambda: Kind(cut(deep())),
    "branches gone": lambda: Kind(cut(deep(), branches=True)),
    "gathered": lambda: Kind(gathered()),
    "layer scale": lambda: Kind(scaled()),
    "tokens": lambda: Kind(select(deep(), 0.5, at=(0, 2))),
    "attended tokens": lambda: Kind(select(deep(), 0.5, at=1, scorer=Attentive)),
    "all at once": lambda: masked(select(cut(deep(), branches=True), 0.6, at=1)),
    "bfloat16": lambda: Kind(deep().bfloat16()),
    "tied": lambda: Kind(tied()),
    "rotary": rotary,
}

FRESH = """
import sys
import torch
from safetensors.torch import load_file, save_file
from svite.store.saved import load

for path in sys.argv[1:]:
    model, sparsifier = load(path)
    first = next(model.parameters())
    images = load_file(path.replace("model", "images"))["images"].to(first.dtype)
    with torch.no_grad():
        found = {"logits": model(images)}
    found |= {f"tensor {name}": value.clone() for name, value in model.state_dict().items()}
    found |= {f"mask {name}": value for name, value in (sparsifier.masks if sparsifier else {}).items()}
    save_file({name: value.contiguous() for name, value in found.items()}, path.replace("model", "found"))
"""


def expected(kind: Kind, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        logits = kind.model.eval()(images.to(next(kind.model.parameters()).dtype))
    masks = kind.sparsifier.masks if kind.sparsifier else {}
    tensors = {f"tensor {name}": value for name, value in kind.model.state_dict().items()}
    return {"logits": logits, **tensors, **{f"mask {name}": value for name, value in masks.items()}}


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """What each kind of model is, and what one fresh process found after loading them."""
    folder = tmp_path_factory.mktemp("saved")
    wanted, paths = {}, {}
    for index, (name, make) in enumerate(KINDS.items()):
        kind = make()
        channels, size = (3, 28) if name == "rotary" else (1, 12)
        images = torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(index))
        paths[name] = folder / f"model{index}.safetensors"
        save(kind.model, paths[name], kind.sparsifier, build=kind.build)
        save_file({"images": images}, folder / f"images{index}.safetensors")
        wanted[name] = expected(kind, images)
    subprocess.run([sys.executable, "-c", FRESH, *map(str, paths.values())], check=True)
    found = {name: load_file(str(path).replace("model", "found")) for name, path in paths.items()}
    return {name: (wanted[name], found[name]) for name in KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_a_fresh_process_finds_the_same_model_bit_for_bit(reloaded, name):
    wanted, found = reloaded[name]
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


def saved(tmp_path: Path, kind: Kind) -> Path:
    path = tmp_path / "run.safetensors"
    save(kind.model, path, kind.sparsifier, build=kind.build)
    return path


@pytest.mark.parametrize("name", KINDS)
def test_what_was_loaded_saves_to_the_same_bytes(tmp_path, name):
    kind = KINDS[name]()
    path = saved(tmp_path, kind)
    model, sparsifier = load(path)
    assert (sparsifier is None) == (kind.sparsifier is None)
    again = tmp_path / "again.safetensors"
    save(model, again, sparsifier, build=kind.build)
    assert again.read_bytes() == path.read_bytes()


def test_a_loaded_model_keeps_its_structure(tmp_path):
    model, _ = load(saved(tmp_path, KINDS["all at once"]()))
    assert [getattr(block.attn, "num_heads", 0) for block in model.blocks] == [1, 2, 0]
    assert [type(block.attn) is Zero for block in model.blocks] == [False, False, True]
    assert model.blocks[1].mlp.fc1.out_features == 61
    assert [type(getattr(block, "selector", None)) is Selector for block in model.blocks] == [False, True, False]
    assert not model.training


def test_loaded_parameters_are_leaves_on_the_cpu_that_train(tmp_path):
    model = deep()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    loaded, _ = load(saved(tmp_path, Kind(model)))
    assert all(p.requires_grad and p.is_leaf and p.device.type == "cpu" for p in loaded.parameters())


def test_tied_tensors_are_tied_again_and_stored_once(tmp_path):
    path = saved(tmp_path, Kind(tied()))
    with safe_open(path, framework="pt") as file:
        assert "blocks.2.mlp.fc1.weight" not in file.keys()  # noqa: SIM118
    model, _ = load(path)
    assert model.blocks[2].mlp.fc1.weight is model.blocks[0].mlp.fc1.weight


def test_strided_and_shared_memory_is_saved(tmp_path):
    model = deep()
    both = torch.randn(32, 16)
    for block, part in zip(model.blocks, (both[:16], both[8:24], both[16:].t()), strict=True):
        block.attn.proj.weight.data = part
    loaded, _ = load(saved(tmp_path, Kind(model)))
    assert same(weights_of(model), weights_of(loaded))


def test_buffers_that_no_state_dict_holds_come_back(tmp_path):
    kind = rotary()
    kind.model.bfloat16()
    loaded, _ = load(saved(tmp_path, kind))
    hidden = all_tensors(loaded).keys() - loaded.state_dict().keys()
    assert hidden
    assert same(all_tensors(kind.model), all_tensors(loaded))


def test_switches_come_back(tmp_path):
    model = deep()
    model.set_grad_checkpointing()
    model.blocks[1].attn.fused_attn = False
    loaded, _ = load(saved(tmp_path, Kind(model)))
    assert loaded.grad_checkpointing
    assert [block.attn.fused_attn for block in loaded.blocks] == [True, False, True]


def test_a_wrapped_model_is_saved_as_what_is_in_it(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    kind = masked(deep())
    kind.model = Wrapper(kind.model)
    loaded, _ = load(saved(tmp_path, kind))
    assert same(weights_of(kind.model.module), weights_of(loaded))


def test_arguments_that_fetch_weights_are_not_stored(tmp_path):
    model = deep()
    path = saved(tmp_path, Kind(model, build=(NAME, {**DEEP, "img_size": (12, 12), "pretrained": False})))
    assert read_container(path)[0]["spec"]["arguments"] == {**DEEP, "img_size": [12, 12]}
    assert same(weights_of(load(path)[0]), weights_of(model))


def test_saving_and_loading_draw_no_random_numbers_and_change_no_mode(tmp_path):
    kind = masked(deep())
    kind.model.train()
    kind.model.blocks[1].eval()
    state = torch.get_rng_state()
    load(saved(tmp_path, kind))
    assert torch.equal(torch.get_rng_state(), state)
    assert [block.training for block in kind.model.blocks] == [True, False, True]


def test_a_note_comes_back_as_it_was(tmp_path):
    note = {"run": {"method": "omp", "density": 0.1, "seeds": [1, 2], "start": None}, "done": True}
    save(deep(), tmp_path / "run.safetensors", build=(NAME, DEEP), note=note)
    assert note_of(tmp_path / "run.safetensors") == note
    save(deep(), tmp_path / "run.safetensors", build=(NAME, DEEP))
    assert note_of(tmp_path / "run.safetensors") == {}


@pytest.mark.parametrize("value", [{1: "an integer key"}, float("nan"), Path("here"), [torch.ones(1)]])
def test_a_note_that_json_cannot_hold_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"The note .* can't be saved; only plain values can"):
        save(deep(), tmp_path / "run.safetensors", build=(NAME, DEEP), note={"mine": value})
    assert not list(tmp_path.iterdir())


# Masks


def test_a_living_zero_stays_alive(tmp_path):
    kind = masked(deep())
    weight, alive = kind.model.head.weight, kind.sparsifier.masks["head.weight"]
    with torch.no_grad():
        weight[alive] = 0.0
    _, sparsifier = load(saved(tmp_path, kind))
    assert same(sparsifier.masks, kind.sparsifier.masks)
    assert bool(alive.any())


def test_masks_are_never_inferred_from_zeros(tmp_path):
    model, sparsifier = load(saved(tmp_path, Kind(masked(deep()).model)))
    assert sparsifier is None
    assert float((model.head.weight == 0).float().mean()) > 0.2


def test_a_loaded_sparsifier_holds_its_topology_through_training(tmp_path):
    kind = headless()
    model, sparsifier = load(saved(tmp_path, kind))
    before = weights_of(model)
    run(model.train(), adamw(model), sparsifier, range(5))
    assert dead_are_zero(sparsifier)
    assert same(sparsifier.masks, kind.sparsifier.masks)
    assert sparsifier.density == kind.sparsifier.density
    assert not same(before, weights_of(model))
    assert not sparsifier.updates


def test_a_loaded_sparsifier_is_enough_to_shrink(tmp_path):
    kind = headless()
    model, sparsifier = load(saved(tmp_path, kind))
    assert same(weights_of(shrink(model, sparsifier)), weights_of(shrink(kind.model, kind.sparsifier)))


def test_a_mask_without_a_living_weight_is_kept(tmp_path):
    model = deep()
    dead = {"head.weight": torch.zeros(5, 16, dtype=torch.bool), "head.bias": torch.zeros(5, dtype=torch.bool)}
    _, sparsifier = load(saved(tmp_path, Kind(model, held(model, dead))))
    assert same(sparsifier.masks, dead)
    assert sparsifier.density == 0


# Bytes


def bits_of(tensor: Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


SHAPES = st.lists(st.integers(0, 5), min_size=0, max_size=3)
SPECIAL = torch.tensor([1.5, -0.0, -2.25, float("inf"), float("-inf"), float("nan")])


@st.composite
def tensors(draw) -> Tensor:
    """Of any shape and type, with few zeros or many, and values that are easily lost."""
    shape, dtype = draw(SHAPES), draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    values = SPECIAL if dtype.is_floating_point else torch.tensor([1.0, -2.0])
    chosen = values[torch.randint(len(values), shape, generator=generator)].to(dtype)
    share = draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    return chosen.masked_fill(torch.rand(shape, generator=generator) < share, 0)


@given(tensors(), st.data())
def test_living_values_survive_packing_bit_for_bit(tensor, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    alive = torch.rand(tensor.shape, generator=generator) < data.draw(st.floats(0, 1))
    small, shapes = packed({"w": tensor}, {"w": alive})
    assert small["w"].numel() == int(alive.sum())
    back, masks = unpacked(small, shapes)
    assert torch.equal(masks["w"], alive)
    assert bits_of(back["w"]) == bits_of(torch.where(alive, tensor, torch.zeros_like(tensor)))
    assert back["w"].shape == tensor.shape


@given(tensors())
@example(torch.tensor([0, -1], dtype=torch.int16).view(torch.bfloat16))  # not any not-a-number: this one
@example(torch.tensor([0.0] + [1.0] * 32))  # five bytes of bits would save four
def test_zeros_are_packed_only_where_it_saves_bytes(tensor):
    small, shapes = packed({"w": tensor}, {})
    zero = tensor == 0
    assert ("w" in shapes) == (-(-tensor.numel() // 8) < int(zero.sum()) * tensor.element_size())
    assert sum(value.nbytes for value in small.values()) <= tensor.nbytes
    back, masks = unpacked(small, shapes)
    assert not masks
    assert bits_of(back["w"][~zero]) == bits_of(tensor[~zero])
    assert not back["w"][zero].any()


def test_a_deit_small_of_a_tenth_of_its_weights_takes_14_mb_not_88(tmp_path):
    name = "deit_small_patch16_224"
    model = timm.create_model(name)
    sparsifier = methods.omp(model, 0.1)
    save(model, tmp_path / "sparse", sparsifier, build=(name, {}))
    loaded, again = load(tmp_path / "sparse")
    assert (tmp_path / "sparse").stat().st_size <= 14_000_000
    assert sum(value.nbytes for value in model.state_dict().values()) > 88_000_000
    assert same(weights_of(model), weights_of(loaded))
    assert again.density == sparsifier.density


# No pickle


def test_the_file_opens_with_safetensors_and_json_alone(tmp_path):
    path = saved(tmp_path, KINDS["all at once"]())
    with safe_open(path, framework="np") as file:
        spec = json.loads(file.metadata()["svite"])["spec"]
        names = set(file.keys())
    assert spec["name"] == NAME
    assert {"at": "blocks.0.attn", "set": {"num_heads": 1, "attn_dim": 8}} in spec["edits"]
    assert {"at": "blocks.2.attn", "put": ["Zero", {"width": None}]} in spec["edits"]
    assert {"at": "blocks.1.selector", "put": ["Selector", {"keep": 0.6, "scorer": "Learned"}]} in spec["edits"]
    assert {"head.weight", "alive:head.weight"} <= names


def test_loading_unpickles_nothing(tmp_path, monkeypatch):
    path = saved(tmp_path, KINDS["all at once"]())
    refuse = lambda *_, **__: pytest.fail("something was unpickled")
    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    load(path)


# What can't be saved


def other_activation(model: nn.Module) -> None:
    model.blocks[1].mlp.act = nn.ReLU()


def parametrized(model: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(model.blocks[1].mlp.fc1)


def gated(model: nn.Module) -> None:
    model.blocks[1].attn.gates = nn.Parameter(torch.ones(2))


def other_norm(model: nn.Module) -> None:
    model.blocks[1].norm1.eps = 0.1


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


# What can't be loaded


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("intact"), KINDS["all at once"]())


def refused(path: Path, said: str) -> None:
    """Loading says this, in one sentence that begins with the file."""
    with pytest.raises(ValueError, match=f"^{path} {said}") as caught:
        load(path)
    assert "\n" not in str(caught.value)


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


def changed(tmp_path: Path, path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> Path:
    """A file of valid checksum with another content."""
    document, tensors = read_container(path)
    change(document, tensors)
    write_container(tmp_path / "changed.safetensors", document, tensors)
    return tmp_path / "changed.safetensors"


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
    "bits of nothing": (lambda _, t: t.pop("alive:head.weight"), "KeyError.*"),
    "an unknown setting": (edited("blocks.0", set={"forward": 1}), "blocks.0.forward can't be set to 1"),
    "a setting of text": (edited("", set={"grad_checkpointing": "x"}), "grad_checkpointing can't be set to 'x'"),
    "an unknown word": (edited("head", put=["Conv9d", {}]), "KeyError.*Conv9d.*"),
    "an unknown scorer": (
        edited("blocks.0.selector", put=["Selector", {"keep": 0.5, "scorer": "Eye"}]),
        "blocks.0.selector.scorer is a Eye, not one of Attentive, Learned",
    ),
    "an edit of nothing": (edited("blocks.9.attn", set={"num_heads": 1}), "AttributeError.*9.*"),
    "no spec": (lambda document, _: document.pop("spec"), "KeyError.*spec.*"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_for_another_architecture_is_refused_by_name(tmp_path, intact, monkeypatch, name):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("something was unpickled"))
    change, said = WRONG[name]
    refused(changed(tmp_path, intact, change), f"can't be built again with timm .*: {said}.$")
