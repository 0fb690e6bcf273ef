"""Averaged weights, half precision, gradient scaling, compiled models, and all of a recipe's parts at once."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from accelerate.utils import DistributedType
from test_train_loop import steps_of
from tiny import VIT, dead_are_zero, same, weights_of
from tiny_runs import MODEL, a_run, data, loop_of

import svite
from svite.data.memory import Data
from svite.params.recipe import Distillation, Mixing, Model
from svite.study import results
from svite.train import processes
from svite.train.checkpoint import load_checkpoint, save_checkpoint
from svite.train.loop import Loop
from svite.train.models import load_model
from svite.train.nonfinite import Diverged

OVERFLOWING = 2.0**100


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Data:
    return data(tmp_path_factory.mktemp("images") / "data")


def rescale(loop: Loop, scale: float) -> None:
    loop.scaler.load_state_dict({**loop.scaler.state_dict(), "scale": scale})


def dead_in(loop: Loop, weights: dict[str, torch.Tensor]) -> bool:
    return not any(bool(weights[name][~alive].any()) for name, alive in loop.sparsifier.masks.items())


# The average


@pytest.mark.parametrize("method", ["dense", "svite", "gmp", "s2vite"])
def test_the_average_decays_as_asked_and_is_as_sparse_as_the_model(method, images):
    loop = loop_of(a_run(method, ema=0.8), images)
    wanted = weights_of(loop.plain_model)
    for _ in range(12):
        steps_of(loop, 1)
        now = weights_of(loop.plain_model)
        wanted = {name: 0.8 * value + 0.2 * now[name] for name, value in wanted.items()}
        if loop.sparsifier:
            for name, alive in loop.sparsifier.masks.items():
                wanted[name][~alive] = 0.0
        found = weights_of(loop.average.model)
        assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)
        assert not loop.sparsifier or dead_in(loop, found)
    assert method == "dense" or loop.sparsifier.updates
    assert not same(found, now)


def test_the_average_is_what_is_evaluated_and_saved(images, tmp_path):
    loop = loop_of(a_run("svite", ema=0.9), images)
    trained = loop.fit()
    assert trained.model is loop.average.model
    results.train(a_run("svite", ema=0.9), images, tmp_path)
    model, masks = svite.load(tmp_path / "models" / "svite-0.5-0.safetensors")
    assert same(weights_of(model), weights_of(loop.average.model))
    with torch.no_grad():
        right = model(images.normalised(images.validation.images)).argmax(1) == images.validation.labels
    assert loop.rows[-1]["validation_top1"] == pytest.approx(100 * float(right.float().mean()))
    assert same(dict(masks.masks), dict(loop.sparsifier.masks))
    assert masks.density == loop.sparsifier.density


# Half precision


@pytest.mark.parametrize(("precision", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_computes_in_it_and_keeps_and_saves_fp32(precision, kind, images, tmp_path):
    loop, kinds = loop_of(a_run("svite", precision=precision), images), set()
    loop.plain_model.head.register_forward_hook(
        lambda module, _, output: kinds.add(output.dtype) if module.training else None
    )
    before = weights_of(loop.plain_model)
    steps_of(loop, loop.per_epoch)
    assert kinds == {kind}
    assert loop.sparsifier.updates
    assert not same(before, weights_of(loop.plain_model))
    assert dead_are_zero(loop.sparsifier)
    state = [value for each in loop.optimizer.state.values() for value in each.values()]
    assert {value.dtype for value in [*loop.plain_model.state_dict().values(), *state]} == {torch.float32}
    results.train(a_run("svite", precision=precision), images, tmp_path)
    model, _ = load_model(tmp_path / "models" / "svite-0.5-0.safetensors")
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


def test_half_precision_learns_what_full_precision_does(images):
    losses = {}
    for precision in ("fp32", "bf16", "fp16"):
        loop = loop_of(a_run("svite", precision=precision), images)
        steps_of(loop, 1)
        losses[precision] = loop.loss
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2)
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=2e-3)


def test_a_step_that_overflows_moves_nothing_and_counts_for_no_topology(images):
    loop = loop_of(a_run("svite", precision="fp16", clip=1.0, ema=0.5), images)
    steps_of(loop, 3)  # the next step is one of an update
    before, masks = weights_of(loop.plain_model), weights_of_masks(loop)
    for halvings in range(1, 3):
        rescale(loop, OVERFLOWING)
        steps_of(loop, 1)
        assert same(before, weights_of(loop.plain_model))
        assert same(masks, weights_of_masks(loop))
        assert loop.scaler.get_scale() == OVERFLOWING / 2
        assert (loop.step, loop.sparsifier.step) == (3 + halvings, 3)
    rescale(loop, 1024.0)
    steps_of(loop, 1)
    assert loop.sparsifier.step == 4
    assert [update.step for update in loop.sparsifier.updates] == [3]
    assert not same(before, weights_of(loop.plain_model))
    assert all(bool(value.isfinite().all()) for value in weights_of(loop.average.model).values())


def test_steps_that_were_skipped_are_told_in_the_end(images, capsys):
    loop = loop_of(a_run("svite", precision="fp16"), images)
    rescale(loop, OVERFLOWING)
    loop.fit()
    skipped = loop.steps - loop.sparsifier.step
    assert skipped > 2
    said = f"{skipped} of {loop.steps} steps were skipped, their gradients too large for fp16."
    assert said in capsys.readouterr().out


def weights_of_masks(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: mask.clone() for name, mask in loop.sparsifier.masks.items()}


def test_the_scale_is_resumed(images, tmp_path):
    whole = loop_of(a_run("svite", precision="fp16"), images)
    steps_of(whole, 2)
    rescale(whole, OVERFLOWING)
    steps_of(whole, 1)
    rescale(whole, 512.0)
    steps_of(whole, 1)
    save_checkpoint(tmp_path / "run.ckpt", {"settings": {}, "loop": whole.state_dict()})
    resumed = loop_of(a_run("svite", precision="fp16"), images)
    resumed.load_state_dict(load_checkpoint(tmp_path / "run.ckpt")["loop"])
    assert resumed.scaler.get_scale() == 512.0
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    assert resumed.sparsifier.step == 3
    for loop in (whole, resumed):
        steps_of(loop, 5)
    assert same(weights_of(whole.plain_model), weights_of(resumed.plain_model))


def test_an_overflow_of_half_precision_is_told_by_its_layer(images):
    loop = loop_of(a_run("dense", precision="fp16"), images)
    loop.model.train()
    with torch.no_grad():
        loop.plain_model.blocks[0].mlp.fc1.weight.mul_(1e7)  # finite in fp32
    before = weights_of(loop.plain_model)
    with pytest.raises(Diverged, match=r"at step 0, in epoch 1; the first layer .* is blocks\.0\.mlp\.fc1\.$"):
        loop.advance()
    assert same(before, weights_of(loop.plain_model))


# Compiled


@pytest.mark.slow
@pytest.mark.xdist_group("compiled")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("method", ["svite", "s2vite"])
def test_a_compiled_model_trains_to_what_the_plain_one_does(method, images):
    torch.compiler.reset()  # as in a process of its own: code that was made for an earlier model calls no new hooks
    plain, compiled = (loop_of(a_run(method, compile=each, optimizer="sgd", ema=0.5), images) for each in (False, True))
    for loop in (plain, compiled):
        steps_of(loop, 6)
    assert compiled.model is not compiled.plain_model
    assert plain.sparsifier.updates
    assert same(weights_of_masks(plain), weights_of_masks(compiled))
    assert compiled.rows[0]["validation_loss"] == pytest.approx(plain.rows[0]["validation_loss"], rel=1e-3)
    found = weights_of(compiled.plain_model)
    assert found.keys() == plain.plain_model.state_dict().keys()
    for name, weight in weights_of(plain.plain_model).items():
        assert torch.allclose(found[name], weight, rtol=1e-3, atol=1e-5), name


# All at once


DEIT = Model(
    name="deit_tiny_distilled_patch16_224",
    **{name: MODEL.arguments[name] for name in ("img_size", "patch_size", "in_chans", "num_classes", "num_heads")},
    embed_dim=16,
    depth=2,
    drop_path_rate=0.1,
    drop_rate=0.1,
)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["svite", "s2vite"])
def test_a_recipe_with_all_of_its_parts_resumes_bit_for_bit(method, precision, images, tmp_path):
    arguments = {**VIT, "num_classes": 3, "embed_dim": 24}
    teacher = timm.create_model("vit_tiny_patch16_224", **arguments)
    svite.save(teacher, tmp_path / "teacher.safetensors", build=("vit_tiny_patch16_224", arguments))
    run = a_run(
        method,
        mixing=Mixing(),
        distillation=Distillation(teacher=str(tmp_path / "teacher.safetensors"), kind="soft", temperature=2.0),
        ema=0.9,
        accumulate=2,
        clip=1.0,
        layer_decay=0.75,
        precision=precision,
        epochs=2,
    ).model_copy(update={"model": DEIT})
    whole = loop_of(run, images)
    while whole.step < whole.steps:
        steps_of(whole, 1)
        if whole.step in (4, 7):
            save_checkpoint(tmp_path / f"{whole.step}.ckpt", {"settings": {}, "loop": whole.state_dict()})
    assert whole.sparsifier.updates
    for step in (4, 7):
        torch.rand(3)
        resumed = loop_of(run, images)
        resumed.fit(tmp_path / f"{step}.ckpt")
        for one, other in ((whole.plain_model, resumed.plain_model), (whole.judged, resumed.judged)):
            assert same(weights_of(one), weights_of(other)), step
        assert resumed.rows == whole.rows
        assert resumed.sparsifier.updates == whole.sparsifier.updates


# Launched by others


def test_precision_is_the_recipes_whatever_accelerate_is_configured_for(tmp_path):
    code = "import svite.train.processes as p; print(p.accelerator_of_this_machine().mixed_precision)"
    asked = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | asked)
    assert done.stdout.strip() == "no", done.stderr


def test_accelerates_own_sharding_is_refused(monkeypatch):
    found = SimpleNamespace(distributed_type=DistributedType.FSDP)
    monkeypatch.setattr(processes, "Accelerator", lambda **_: found)
    with pytest.raises(ValueError, match=r"^Accelerate's configuration asks for FSDP; set it to none there"):
        processes.accelerator_of_this_machine()
