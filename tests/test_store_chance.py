"""Saved models with anything in them changed, and a checksum that fits: one sentence, or the model they describe."""

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_crafted import HUGE, loaded_elsewhere, nested
from tiny_kinds import KINDS
from torch import Tensor

from svite.io.container import read_container, write_container
from svite.io.saved import save

pytestmark = pytest.mark.xdist_group("saved models")


VALUES = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 64, 60_000, HUGE, 2**63, 10**40, 0.5, -0.5, 1e308, "", "x", "cpu"),
    *("blocks.0", "head", "Linear", "Selector", [], [[]], {}, {"device": "cpu"}, nested(150), ["Identity", {}]),
)
KEYS = (
    "device",
    "dtype",
    "pretrained",
    "checkpoint_path",
    "depth",
    "img_size",
    "embed_dim",
    "at",
    "put",
    "set",
    "bias",
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in JSON: what it is in, and its key."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from places(inner)


def mutate(document: dict[str, Any], tensors: dict[str, Tensor], chance: random.Random) -> None:
    if chance.random() < 0.25:
        name = chance.choice(sorted(tensors))
        change = chance.choice([
            lambda t: None, lambda t: t.half(), lambda t: t.to(torch.uint8), lambda t: t.reshape(-1)[1:].clone(),
            lambda t: t.reshape(-1), lambda t: torch.zeros(0, HUGE), lambda t: t.flip(0).clone(),
        ])  # fmt: skip
        tensors[name] = change(tensors.pop(name))
        if tensors[name] is None:
            del tensors[name]
        return
    inside, key = chance.choice(list(places(document)))
    other, elsewhere = chance.choice(list(places(document)))
    fate = chance.random()
    if fate < 0.5:
        inside[key] = copy.deepcopy(chance.choice(VALUES))
    elif fate < 0.7:
        inside[key] = copy.deepcopy(other[elsewhere])
    elif fate < 0.8:
        del inside[key]
    elif isinstance(inside, dict):
        inside[chance.choice(KEYS)] = copy.deepcopy(chance.choice(VALUES))
    else:
        inside.append(copy.deepcopy(chance.choice(VALUES)))


def note_for(name: str) -> dict[str, Any]:
    return {"choice": {"blocks.0.attn.qkv": "csr", "blocks.1": "eager"}, "kind": name}


def test_a_file_with_anything_changed_is_refused_or_is_what_it_says(tmp_path):
    chance, paths = random.Random(11), []
    for number, (name, make) in enumerate(KINDS.items()):
        kind = make()
        whole = tmp_path / f"{number}.safetensors"
        save(kind.model, whole, kind.sparsifier, build=kind.build, note=note_for(name))
        document, tensors = read_container(whole)
        paths.append(whole)
        for each in range(24):
            changed = copy.deepcopy((document, tensors))
            for _ in range(chance.choice([1, 1, 2])):
                mutate(*changed, chance)
            paths.append(tmp_path / f"{number}-{each}.safetensors")
            write_container(paths[-1], *changed)
    said, grown = loaded_elsewhere(*paths)
    whole = [sentence for path, sentence in zip(paths, said, strict=True) if "-" not in path.name]
    assert whole == [""] * len(KINDS)
    for path, sentence in zip(paths, said, strict=True):
        assert sentence == "" or (sentence.startswith(f"{path} ") and sentence.isprintable() and len(sentence) < 1000)
    assert sum(map(bool, said)) > len(said) / 2  # chance did change something
    assert grown < 100_000
