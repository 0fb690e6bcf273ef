"""Every method on every kind of timm Vision Transformer, their structures and formulas, and golden loss curves."""

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from tiny import OPTIMIZERS, STEPS, VIT, adamw, batch, dead_are_zero, made, run, same, train, vit

from svite import methods
from svite.sparsity.cut import n_of_m
from svite.sparsity.layers import units
from svite.sparsity.pool import erk, uniform
from svite.sparsity.schedule import constant, cosine
from svite.study.compact import finished
from svite.vit.cost import macs
from svite.vit.shrink import shrink
from svite.vit.verify import verify

WHOLE = ("group", "isomorphic", "layer", "s2vite", "sviteplus", "vtp")  # of heads, neurons, branches, features, tokens
NAMES = [name for name in methods.__all__ if name not in WHOLE]  # they prune single weights
VARIANTS = {
    "registers": {"reg_tokens": 4},
    "layer scale": {"init_values": 1e-4},
    "qk norm": {"qk_norm": True},
    "no class token": {"class_token": False, "global_pool": "avg"},
}


def variant(name: str) -> torch.nn.Module:
    if name == "distilled":
        torch.manual_seed(0)
        return timm.create_model("deit_tiny_distilled_patch16_224", **VIT)
    return vit(**VARIANTS[name])


@pytest.mark.parametrize("name", [*VARIANTS, "distilled"])
@pytest.mark.parametrize("method", NAMES)
def test_every_method_trains_every_vision_transformer(method, name):
    model = variant(name)
    keys = list(model.state_dict())
    model.set_distilled_training(True) if name == "distilled" else None
    optimizer, sparsifier = adamw(model), made(method, model)
    run(model, optimizer, sparsifier, range(13))
    assert list(model.state_dict()) == keys
    assert sparsifier.density < 0.75 or method in ("nm", "gmp", "l1")
    assert dead_are_zero(sparsifier)
    assert set(sparsifier.masks) <= {f"{n}.weight" for n, _ in model.named_modules()}
    assert ("head_dist.weight" in sparsifier.masks) == (name == "distilled")
    assert len(sparsifier.masks) == 6 + (name == "distilled")


@pytest.mark.parametrize("name", [*VARIANTS, "distilled"])
@pytest.mark.parametrize("method", WHOLE)
def test_every_structured_method_trains_every_vision_transformer_and_leaves_a_smaller_one(method, name):
    model = variant(name)
    images = batch(0)[0]
    whole, sparsifier = macs(model).total(), made(method, model)
    model.set_distilled_training(True) if name == "distilled" else None
    run(model, adamw(model), sparsifier)
    small, _ = finished(model, sparsifier)
    verify(model, small, images)
    assert macs(small).total() < whole
    assert dead_are_zero(sparsifier)


@pytest.mark.parametrize("method", [*NAMES, *WHOLE])
@pytest.mark.parametrize("density", [0.0, 1.5])
def test_a_density_outside_zero_to_one_is_refused(method, density):
    with pytest.raises(ValueError, match=rf"^(keep|density|heads) is {density}; it must lie above 0"):
        made(method, vit(), density)


@pytest.mark.parametrize("method", NAMES)
def test_layers_narrows_what_is_pruned_and_a_wrong_pattern_is_an_error(method):
    sparsifier = made(method, vit(), layers=["blocks.*.mlp.*"])
    assert list(sparsifier.masks) == ["blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"]
    with pytest.raises(ValueError, match=r"No prunable layer is called blocks\.9;"):
        made(method, vit(), layers=["blocks.9"])


@pytest.mark.parametrize("method", sorted({*NAMES} - {"nm", "block"}))
def test_a_density_that_empties_a_layer_names_it(method):
    with pytest.raises(ValueError, match=r"nothing alive in .*head\.weight"):
        made(method, vit(), 0.0004, **({} if method == "srigl" else {"pool": uniform}))


# Structures


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2)])
def test_nm_holds_in_every_group_after_every_step(n, m):
    model = vit()
    sparsifier = methods.nm(model, n / m, STEPS, m=m, interval=3)
    for _ in train(model, adamw(model), sparsifier):
        for mask in sparsifier.masks.values():
            assert (mask.flatten(1).unflatten(1, (-1, m)).sum(2) == n).all()
    assert sum(update.born for update in sparsifier.updates) > 0


def test_nm_leaves_layers_that_do_not_divide_dense_and_says_so():
    model = vit(img_size=15, patch_size=5)  # 25 inputs a patch
    sparsifier = methods.nm(model, 0.5, STEPS)
    table = sparsifier.summary().set_index("unit")
    assert table.achieved["patch_embed.proj.weight"] == table.target["patch_embed.proj.weight"] == 1.0
    assert table.achieved["head.weight"] == 0.5
    with pytest.raises(ValueError, match=r"does not divide patch_embed\.proj\.weight; leave these out"):
        methods.nm(vit(img_size=15, patch_size=5), 0.5, STEPS, layers=["patch_embed.proj", "head"])
    with pytest.raises(ValueError, match="No layer's inputs divide by 3"):
        methods.nm(torch.nn.Sequential(torch.nn.Linear(4, 4)), 1 / 3, STEPS, m=3)


@pytest.mark.parametrize("density", [0.3, 0.05])
def test_nm_wants_a_whole_number_of_every_group(density):
    with pytest.raises(ValueError, match=f"A density of {density} is not a whole number of every 4 inputs"):
        methods.nm(vit(), density, STEPS)


def test_groups_of_eight_are_freer_than_groups_of_four():
    sparsifier = methods.nm(vit(), 0.5, STEPS, m=8)
    sums = {int(n) for m in sparsifier.masks.values() for n in m.flatten(1).unflatten(1, (-1, 4)).sum(2).unique()}
    assert sums == {0, 1, 2, 3, 4}
    for mask in sparsifier.masks.values():
        assert (mask.flatten(1).unflatten(1, (-1, 8)).sum(2) == 4).all()


def test_nm8_is_nm_of_eight_and_says_so():
    with pytest.warns(DeprecationWarning, match=r"^svite\.methods\.nm8\(.*\) is svite\.methods\.nm\(.*, m=8\) now\.$"):
        former = methods.nm8
    assert "nm8" not in methods.__all__
    first = former(vit(), 0.5, STEPS, interval=4, seed=3).masks
    assert same(first, methods.nm(vit(), 0.5, STEPS, m=8, interval=4, seed=3).masks)
    assert not same(first, methods.nm(vit(), 0.5, STEPS, interval=4, seed=3).masks)
    with pytest.raises(AttributeError, match=r"module 'svite\.methods' has no attribute 'nm9'"):
        methods.nm9  # noqa: B018


def test_squares_live_or_die_as_one_after_every_step():
    model = vit()
    sparsifier = made("block", model)
    for _ in train(model, adamw(model), sparsifier):
        for name, mask in sparsifier.masks.items():
            if name != "head.weight":
                squares = mask.flatten(1).unflatten(1, (-1, 4)).unflatten(0, (-1, 4)).sum((1, 3))
                assert set(squares.flatten().tolist()) == {0, 16}
                assert squares.sum() == mask.numel() / 2
    assert sum(update.born for update in sparsifier.updates) > 0
    assert sparsifier.summary().set_index("unit").achieved["head.weight"] == 1  # of 5 outputs
    with pytest.raises(ValueError, match=r"does not divide head\.weight; leave these out"):
        made("block", vit(), layers=["head"])
    with pytest.raises(ValueError, match="No layer of Sequential divides into squares of 16 x 16"):
        methods.block(torch.nn.Sequential(torch.nn.Linear(4, 4)), 0.5, STEPS)
    with pytest.raises(ValueError, match=r"nothing alive in patch_embed\.proj\.weight"):
        made("block", vit(), 0.01)


@pytest.mark.parametrize("salient", [0.0, 0.3, 0.95])
def test_srigl_keeps_the_same_number_of_inputs_for_every_active_output(salient):
    model = vit()
    sparsifier = made("srigl", model, 0.2, salient=salient)
    start = {name: int(mask.sum()) for name, mask in sparsifier.masks.items()}
    for _ in train(model, adamw(model), sparsifier):
        for name, mask in sparsifier.masks.items():
            fan_ins = mask.flatten(1).sum(1)
            active = fan_ins[fan_ins > 0]
            assert (active == active[0]).all()
            assert start[name] - len(active) < active.sum() <= start[name]
            assert salient or active.sum() == start[name]
    assert sum(update.born for update in sparsifier.updates) > 0
    ablated = {name for name, mask in sparsifier.masks.items() if not mask.flatten(1).any(1).all()}
    assert bool(ablated) == (salient == 0.95)
    assert "head.weight" not in ablated


def test_neurons_that_srigl_ablates_can_be_removed():
    model = vit()
    sparsifier = made("srigl", model, 0.2, salient=0.95)
    run(model, adamw(model), sparsifier)
    rows = sparsifier.masks["blocks.0.mlp.fc1.weight"].any(1)
    small = shrink(model, sparsifier)
    assert small.blocks[0].mlp.fc1.out_features <= int(rows.sum()) < len(rows)
    verify(model, small, batch(0)[0])


# Scores


def test_omp_keeps_the_largest_weights_of_the_whole_model():
    model = vit()
    before = torch.cat([w.detach().abs().flatten() for n, w in model.named_parameters() if n in omp_names(model)])
    sparsifier = methods.omp(model, 0.2)
    after = torch.cat([weight.detach().abs().flatten() for weight in sparsifier.weights.values()])
    keep = int(0.2 * len(before) + 0.5)
    assert int((after > 0).sum()) == keep
    assert torch.equal(after[after > 0].sort().values, before.sort(descending=True).values[:keep].sort().values)


def omp_names(model: torch.nn.Module) -> set[str]:
    return {unit.name for unit in units(model)}


def test_snip_keeps_the_largest_products_and_needs_gradients():
    with pytest.raises(
        ValueError, match=r"patch_embed\.proj\.weight has no gradient, which the score 'saliency' needs"
    ):
        methods.snip(vit(), 0.5)
    model = torch.nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[5.0, 1.0, 1.0, 2.0]])
    model(torch.tensor([[0.1, 4.0, -3.0, 1.0]])).sum().backward()
    assert methods.snip(model, 0.5).masks["weight"].tolist() == [[False, True, True, False]]


def test_taylor_ends_at_the_asked_density_halfway_at_the_latest():
    for steps in (1, 2, 3, 7, 24):
        model = torch.nn.Linear(8, 8, bias=False)
        sparsifier = methods.taylor(model, 0.25, steps)
        optimizer = adamw(model)
        for _ in range(steps):
            model(torch.ones(1, 8)).sum().backward()
            sparsifier.before_step(optimizer)
            optimizer.step()
            sparsifier.after_step()
        if steps > 1:
            assert sparsifier.density == 0.25
            assert sparsifier.updates[-1].step <= max(steps // 2, 1)


def test_gmp_follows_its_cubic_at_every_cut():
    model = vit()
    sparsifier = methods.gmp(model, 0.3, 100, interval=10, begin=0.1, until=0.8, pool=uniform)
    run(model, adamw(model), sparsifier, range(85))
    steps = [update.step for update in sparsifier.updates]
    assert steps == list(range(10, 81, 10))
    expected = [1 - 0.7 * (1 - (1 - (step - 10) / 70) ** 3) for step in steps]
    assert [update.density for update in sparsifier.updates] == pytest.approx(expected, abs=1e-3)


def test_set_and_rigl_replace_their_share_of_the_living():
    model = vit()
    sparsifier = made("set", model, fraction=0.3)
    run(model, adamw(model), sparsifier, range(5))
    update = sparsifier.updates[0]
    assert 0.15 < update.born / update.alive <= 0.3  # some of the dropped come back at once
    assert update.fraction == 0.3


def test_set_on_a_cosine_replaces_less_and_less():
    births = {}
    for schedule in (constant, cosine):
        sparsifier = made("set", model := vit(), schedule=schedule)
        run(model, adamw(model), sparsifier)
        births[schedule] = [update.born for update in sparsifier.updates]
        expected = [schedule(0.3, int(0.8 * STEPS))(step) for step in (4, 8, 12, 16)]
        assert [update.fraction for update in sparsifier.updates] == expected
    assert births[cosine][-1] < births[constant][-1] / 2
    assert births[cosine] == sorted(births[cosine], reverse=True)


# SViTE, and the released code


def fraction_at(sparsifier, step: int) -> float:
    return sparsifier.fraction(step)


def test_svite_drops_by_the_papers_cosine_to_zero_at_t_end():
    sparsifier = methods.svite(vit(), 0.5, 1000)
    assert fraction_at(sparsifier, 0) == 0.5
    assert fraction_at(sparsifier, 400) == pytest.approx(0.25)
    assert fraction_at(sparsifier, 800) == pytest.approx(0.0)
    assert [step for step in range(1001) if sparsifier.when(step)] == list(range(100, 801, 100))


def test_the_released_codes_cosine_runs_over_all_of_training_to_a_floor():
    sparsifier = methods.svite(vit(), 0.5, 1000, paper=True)
    assert fraction_at(sparsifier, 0) == 0.5
    assert fraction_at(sparsifier, 500) == pytest.approx(0.2525)
    assert fraction_at(sparsifier, 800) == pytest.approx(0.0523, abs=5e-5)
    assert fraction_at(sparsifier, 1000) == pytest.approx(0.005)
    assert [step for step in range(1001) if sparsifier.when(step)] == list(range(100, 800, 100))


def test_the_released_code_draws_its_start_weight_by_weight():
    paper, exact = methods.svite(vit(), 0.5, 100, paper=True), methods.svite(vit(), 0.5, 100)
    asked = {pool.units[0].name: pool.keep(pool.density) for pool in erk(units(vit()), 0.5)}
    assert {name: int(mask.sum()) for name, mask in exact.masks.items()} == asked
    assert {name: int(mask.sum()) for name, mask in paper.masks.items()} != asked
    assert paper.density == pytest.approx(0.5, abs=0.03)


def test_the_released_code_leaves_gradients_and_moments_of_the_dead():
    model = vit()
    optimizer, sparsifier = adamw(model), methods.svite(model, 0.5, STEPS, interval=4, paper=True)
    counts = {name: int(mask.sum()) for name, mask in sparsifier.masks.items()}
    run(model, optimizer, sparsifier, range(5))
    for name, weight in sparsifier.weights.items():
        dead = ~sparsifier.masks[name]
        assert weight.grad[dead].any() == optimizer.state[weight]["exp_avg"][dead].any() == dead.any()
    assert dead_are_zero(sparsifier)
    assert {name: int(mask.sum()) for name, mask in sparsifier.masks.items()} == counts
    assert sparsifier.updates[0].born > 0


# Golden runs

GOLDEN = Path(__file__).parent / "golden"
CURVES = {"dense": ("", {}), **{name: (name, {}) for name in methods.__all__}, "nm-8": ("nm", {"m": 8})}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", CURVES)
def test_the_loss_curve_is_the_recorded_one(name, optimizer):
    """Twenty steps; `SVITE_GOLDEN=write` records them anew after a change that is meant to change them."""
    model, (method, arguments) = vit(), CURVES[name]
    sparsifier = made(method, model, **arguments) if method else None
    losses = list(train(model, OPTIMIZERS[optimizer](model), sparsifier, range(20)))
    path = GOLDEN / f"{name}-{optimizer}.json"
    if os.environ.get("SVITE_GOLDEN") == "write":
        path.write_text(json.dumps([round(loss, 6) for loss in losses]) + "\n")
    assert losses == pytest.approx(json.loads(path.read_text()), abs=2e-4 if optimizer == "adamw" else 2e-2)


def test_golden_curves_tell_the_methods_apart():
    curves = {path.stem: path.read_text() for path in GOLDEN.glob("*-adamw.json")}
    assert curves.keys() == {f"{name}-adamw" for name in CURVES}
    assert len(set(curves.values())) == len(curves)


def test_a_cut_and_an_allocation_can_be_combined_freely():
    pools = erk(units(vit(), ["blocks.*"], n_of_m(8)), 0.5)
    assert {pool.units[0].members for pool in pools} == {8}
