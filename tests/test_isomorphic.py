"""Isomorphic pruning: who competes with whom, and the cut against plain loops."""

import pytest
import torch
from timm.layers import Attention, Mlp
from tiny import adamw, backward, batch, made, run, vit
from torch import nn

from svite import methods
from svite.sparsity.layers import elements
from svite.sparsity.pool import isomorphic
from svite.vit.shrink import shrink
from svite.vit.structure import structures
from svite.vit.verify import verify


def test_members_compete_with_those_of_their_form_only():
    wide, narrow = [Attention(16, num_heads=2), Mlp(16, 24)], [Attention(16, num_heads=4), Mlp(16, 8), Mlp(12, 8)]
    model = nn.ModuleList([*wide, *narrow, Attention(16, num_heads=2)])
    pools = isomorphic(structures(model), 0.5)
    assert [[unit.name for unit in pool.units] for pool in pools] == [
        ["0.heads", "5.heads"], ["2.heads"], ["1.neurons", "3.neurons"], ["4.neurons"],
    ]  # fmt: skip
    assert {pool.density for pool in pools} == {0.5}


def test_single_weights_have_no_form():
    with pytest.raises(ValueError, match=r"^patch_embed\.proj\.weight has single weights for members"):
        isomorphic(elements(vit()), 0.5)


def in_plain_sums(block: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """|w dL/dw| over all weights of each head, and of each neuron."""
    worth = {name: (p * p.grad).abs().detach() for name, p in block.named_parameters()}
    rows = (worth["attn.qkv.weight"].sum(1) + worth["attn.qkv.bias"]).view(3, 2, 8).sum((0, 2))
    inner = worth["mlp.fc1.weight"].sum(1) + worth["mlp.fc1.bias"]
    return rows + worth["attn.proj.weight"].sum(0).view(2, 8).sum(1), inner + worth["mlp.fc2.weight"].sum(0)


def test_the_cut_keeps_the_best_of_all_layers_by_mean_saliency():
    model, batches = vit(depth=3), 3
    sparsifier = methods.isomorphic(model, 0.5, 20, batches=batches)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scores = dict.fromkeys(sparsifier.units, 0.0)
    for step in range(batches + 1):
        optimizer.zero_grad()
        backward(model, step)
        if step:  # the first step is not looked at: the cut comes at step 3
            for index, block in enumerate(model.blocks):
                heads, neurons = in_plain_sums(block)
                scores[f"blocks.{index}.attn.heads"] += heads
                scores[f"blocks.{index}.mlp.neurons"] += neurons
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
    for kind, keep in (("heads", 3), ("neurons", 96)):
        mine = {name: score for name, score in scores.items() if name.endswith(kind)}
        order = sorted((float(s), n, i) for n, score in mine.items() for i, s in enumerate(score))[::-1]
        best = {max((float(s), n, i) for i, s in enumerate(score))[1:] for n, score in mine.items()}
        rest = [(n, i) for _, n, i in order if (n, i) not in best]
        expected = best | {*rest[: keep - len(best)]}
        alive = {(name, int(i)) for name in mine for i in sparsifier.alive[name].flatten().nonzero()}
        assert alive == expected
    assert [update.step for update in sparsifier.updates] == [3]


def test_it_cuts_halfway_at_the_latest():
    for steps, cut in ((1, 1), (4, 2), (100, 10)):
        sparsifier = methods.isomorphic(vit(), 0.5, steps)
        assert [step for step in range(102) if sparsifier.when(step)] == [cut]


def test_what_is_dead_can_be_removed():
    model = vit(depth=2)
    sparsifier = made("isomorphic", model, 0.5)
    run(model, adamw(model), sparsifier)
    small = shrink(model)
    verify(model, small, batch(0)[0])
    assert sum(block.mlp.fc2.in_features for block in small.blocks) == 64
