"""What is saved comes back, in a fresh process too: bit for bit, with its masks, and nothing in a file is executed."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import adamw, dead_are_zero, run, same, weights_of
from tiny_kinds import DEEP, KINDS, NAME, Kind, deep, masked, rotary, saved
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from svite.io.container import read_container
from svite.io.fixed import held
from svite.io.saved import load, note_of, save
from svite.io.tensors import all_tensors
from svite.tokens import Selector
from svite.vit.parts import Zero
from svite.vit.shrink import shrink

pytestmark = pytest.mark.xdist_group("saved models")  # saved once, by one worker

FRESH = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from svite.io.saved import load

for path in map(Path, sys.argv[1:]):
    model, sparsifier = load(path)
    first = next(model.parameters())
    images = load_file(path.with_name("images"))["images"].to(first.dtype)
    with torch.no_grad():
        found = {"logits": model(images)}
    found |= {f"tensor {name}": value.clone() for name, value in model.state_dict().items()}
    found |= {f"mask {name}": value for name, value in (sparsifier.masks if sparsifier else {}).items()}
    save_file({name: value.contiguous() for name, value in found.items()}, path.with_name("found"))
"""


def expected(kind: Kind, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        logits = kind.model.eval()(images.to(next(kind.model.parameters()).dtype))
    masks = kind.sparsifier.masks if kind.sparsifier else {}
    tensors = {f"tensor {name}": value for name, value in kind.model.state_dict().items()}
    return {"logits": logits, **tensors, **{f"mask {name}": value for name, value in masks.items()}}


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> dict[str, tuple[Kind, Path]]:
    """A model of each kind and its file; not to be changed."""
    kinds = {name: make() for name, make in KINDS.items()}
    return {name: (kind, saved(tmp_path_factory.mktemp("saved"), kind)) for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def reloaded(stored) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """What each kind of model is, and what one fresh process found after loading them."""
    wanted = {}
    for index, (name, (kind, path)) in enumerate(stored.items()):
        channels, size = (3, 28) if name == "rotary" else (1, 12)
        images = torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(index))
        save_file({"images": images}, path.with_name("images"))
        wanted[name] = expected(kind, images)
    subprocess.run([sys.executable, "-c", FRESH, *(str(path) for _, path in stored.values())], check=True)
    return {name: (wanted[name], load_file(path.with_name("found"))) for name, (_, path) in stored.items()}


@pytest.mark.parametrize("name", KINDS)
def test_a_fresh_process_finds_the_same_model_bit_for_bit(reloaded, name):
    wanted, found = reloaded[name]
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("name", KINDS)
def test_what_was_loaded_saves_to_the_same_bytes(tmp_path, stored, name):
    kind, path = stored[name]
    model, sparsifier = load(path)
    assert (sparsifier is None) == (kind.sparsifier is None)
    again = tmp_path / "again.safetensors"
    save(model, again, sparsifier, build=kind.build)
    assert again.read_bytes() == path.read_bytes()


def test_a_loaded_model_keeps_its_structure(stored):
    model, _ = load(stored["all at once"][1])
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


def test_tied_tensors_are_tied_again_and_stored_once(stored):
    _, path = stored["tied"]
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
    kind = masked(deep())
    kind.model = AveragedModel(torch.compile(kind.model, backend="eager"))
    loaded, _ = load(saved(tmp_path, kind))
    assert same(weights_of(kind.model.module._orig_mod), weights_of(loaded))


def test_what_is_loaded_in_inference_mode_is_an_ordinary_model(tmp_path):
    path = saved(tmp_path, masked(deep()))
    with torch.inference_mode():
        model, sparsifier = load(path)
        assert torch.is_inference_mode_enabled()
    run(model, adamw(model), sparsifier, range(2))
    assert dead_are_zero(sparsifier)


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


# Masks


def test_a_living_zero_stays_alive(tmp_path):
    kind = masked(deep())
    weight, alive = kind.model.head.weight, kind.sparsifier.masks["head.weight"]
    with torch.no_grad():
        weight[alive] = 0.0
    _, sparsifier = load(saved(tmp_path, kind))
    assert same(sparsifier.masks, kind.sparsifier.masks)
    assert bool(alive.any())


def test_masks_are_never_inferred_from_zeros(stored):
    model, sparsifier = load(stored["zeros"][1])
    assert sparsifier is None
    assert float((model.head.weight == 0).float().mean()) > 0.2


def test_a_loaded_sparsifier_holds_its_topology_through_training(stored):
    kind, path = stored["masked heads"]
    model, sparsifier = load(path)
    before = weights_of(model)
    run(model.train(), adamw(model), sparsifier, range(5))
    assert dead_are_zero(sparsifier)
    assert same(sparsifier.masks, kind.sparsifier.masks)
    assert sparsifier.density == kind.sparsifier.density
    assert not same(before, weights_of(model))
    assert not sparsifier.updates


def test_a_loaded_sparsifier_is_enough_to_shrink(stored):
    kind, path = stored["masked heads"]
    model, sparsifier = load(path)
    assert same(weights_of(shrink(model, sparsifier)), weights_of(shrink(kind.model, kind.sparsifier)))


def test_a_mask_without_a_living_weight_is_kept(tmp_path):
    model = deep()
    dead = {"head.weight": torch.zeros(5, 16, dtype=torch.bool), "head.bias": torch.zeros(5, dtype=torch.bool)}
    _, sparsifier = load(saved(tmp_path, Kind(model, held(model, dead))))
    assert same(sparsifier.masks, dead)
    assert sparsifier.density == 0


# No pickle


def test_the_file_opens_with_safetensors_and_json_alone(stored):
    _, path = stored["all at once"]
    with safe_open(path, framework="np") as file:
        spec = json.loads(file.metadata()["svite"])["spec"]
        names = set(file.keys())
    assert spec["name"] == NAME
    assert {"at": "blocks.0.attn", "set": {"num_heads": 1, "attn_dim": 8}} in spec["edits"]
    assert {"at": "blocks.2.attn", "put": ["Zero", {"width": None}]} in spec["edits"]
    assert {"at": "blocks.1.selector", "put": ["Selector", {"keep": 0.6, "scorer": "Learned"}]} in spec["edits"]
    assert {"head.weight", "alive:head.weight"} <= names


def test_loading_unpickles_nothing(stored, monkeypatch):
    refuse = lambda *_, **__: pytest.fail("something was unpickled")
    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    load(stored["all at once"][1])


def test_a_file_that_the_first_version_wrote_comes_back_and_saves_to_the_same_bytes(tmp_path):
    """A shrunk, masked model that selects tokens."""
    first = Path(__file__).parent / "saved" / "first.safetensors"
    model, sparsifier = load(first)
    save(model, tmp_path / "again.safetensors", sparsifier, build=(NAME, DEEP))
    assert (tmp_path / "again.safetensors").read_bytes() == first.read_bytes()
