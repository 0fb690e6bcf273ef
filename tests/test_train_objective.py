"""What training minimises: softened labels, mixed images, a teacher's say, and gradients in parts."""

import numpy as np
import pytest
import timm
import torch
from test_train_loop import steps_of
from timm.data import Mixup
from tiny import VIT, same, vit, weights_of
from tiny_runs import MODEL, a_run, data, loop_of
from torch import Tensor, nn

import svite
from svite.data.memory import Data
from svite.params.recipe import Distillation, Mixing, Model, Recipe
from svite.study import results
from svite.train.models import load_model
from svite.train.objective import Objective

CPU = torch.device("cpu")
DISTILLED = Model(
    **{**MODEL.arguments, "class_token": True, "global_pool": "token"}, name="deit_tiny_distilled_patch16_224"
)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 0, 1])
LOGITS = torch.linspace(-2, 3, 24).reshape(8, 3).sin() * 3
PIXELS = torch.linspace(-1, 1, 8 * 144).reshape(8, 1, 12, 12).sin()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Data:
    return data(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture
def teacher(tmp_path) -> tuple[str, nn.Module]:
    """The file of a model that knows three classes, and the model."""
    arguments = {**VIT, "num_classes": 3, "embed_dim": 24}
    model = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    svite.save(model, tmp_path / "teacher.safetensors", build=("vit_tiny_patch16_224", arguments))
    return str(tmp_path / "teacher.safetensors"), model


def objective(**recipe: object) -> Objective:
    return Objective(Recipe(**recipe), vit(num_classes=3), CPU)


def softened(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with smoothed labels, spelled out."""
    wanted = torch.full_like(logits, smoothing / logits.shape[1])
    wanted[range(len(labels)), labels] += 1 - smoothing
    return -(wanted * (logits.exp() / logits.exp().sum(1, keepdim=True)).log()).sum(1).mean()


# Mixing and smoothing


@pytest.mark.parametrize("seed", [5, 2**40 + 5])
def test_mixing_is_timms_with_the_same_seed_and_leaves_numpys_state_alone(seed):
    mixing = objective(mixing=Mixing(mixup=0.4, cutmix=0.7, probability=0.9, switch=0.3), smoothing=0.2)
    before = np.random.get_state()  # noqa: NPY002
    found = mixing.mixed(PIXELS.clone(), LABELS, seed)
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    np.random.seed(seed % 2**32)  # noqa: NPY002
    wanted = Mixup(0.4, 0.7, prob=0.9, switch_prob=0.3, label_smoothing=0.2, num_classes=3)(PIXELS.clone(), LABELS)
    np.random.set_state(before)  # noqa: NPY002
    assert all(map(torch.equal, found, wanted))
    assert found[1].shape == (8, 3)
    assert torch.allclose(found[1].sum(1), torch.ones(8))


def test_seeds_mix_differently_and_the_same_one_alike():
    mixing = objective(mixing=Mixing())
    first, again, *others = (mixing.mixed(PIXELS.clone(), LABELS, seed)[1] for seed in (1, 1, 2, 3))
    assert torch.equal(first, again)
    assert not any(torch.equal(first, other) for other in others)


def test_labels_are_smoothed_once_with_mixing_and_without():
    wanted = softened(LOGITS, LABELS, 0.3)
    for made in (objective(smoothing=0.3), objective(smoothing=0.3, mixing=Mixing(probability=0.0))):
        assert made(LOGITS, *made.mixed(PIXELS, LABELS, 0)) == pytest.approx(float(wanted), rel=1e-5)


def test_mixing_that_mixes_nothing_is_refused():
    with pytest.raises(ValueError, match="mixup and cutmix are both 0"):
        Mixing(mixup=0.0, cutmix=0.0)


# A teacher


def against(logits: Tensor, guess: Tensor, kind: str, temperature: float) -> Tensor:
    """The teacher's loss, spelled out."""
    if kind == "hard":
        return softened(logits, guess.argmax(1), 0.0)
    wanted, found = (x.div(temperature).softmax(1) for x in (guess, logits))
    return (wanted * (wanted.log() - found.log())).sum(1).mean() * temperature**2


@pytest.mark.parametrize(("kind", "temperature"), [("hard", 1.0), ("soft", 1.0), ("soft", 3.0)])
def test_distillation_is_what_the_paper_says(kind, temperature, teacher):
    path, model = teacher
    made = objective(distillation=Distillation(teacher=path, kind=kind, share=0.3, temperature=temperature))
    wanted = 0.7 * softened(LOGITS, LABELS, 0.1) + 0.3 * against(LOGITS, model(PIXELS).detach(), kind, temperature)
    assert made(LOGITS, PIXELS, LABELS) == pytest.approx(float(wanted), rel=1e-4)


def test_a_second_output_is_the_teachers(teacher):
    path, model = teacher
    made = objective(distillation=Distillation(teacher=path, share=0.3))
    wanted = 0.7 * softened(LOGITS, LABELS, 0.1) + 0.3 * against(-LOGITS, model(PIXELS).detach(), "hard", 1.0)
    assert made((LOGITS, -LOGITS), PIXELS, LABELS) == pytest.approx(float(wanted), rel=1e-4)


def test_a_teacher_by_name_is_timms_pretrained_one_that_sees_images_as_it_was_trained_to(monkeypatch):
    student, asked = vit(num_classes=3, in_chans=3), {}
    made = timm.create_model("deit_tiny_patch16_224", **{**VIT, "num_classes": 3, "in_chans": 3})
    monkeypatch.setattr(timm, "create_model", lambda name, **given: asked.update(given, name=name) or made)
    objective = Objective(Recipe(distillation=Distillation(teacher="deit_large", kind="soft", share=1.0)), student, CPU)
    assert asked == {"name": "deit_large", "pretrained": True, "num_classes": 3, "in_chans": 3}
    pixels = PIXELS.expand(8, 3, 12, 12)
    mean, std = (torch.tensor(made.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    guess = made.eval()((pixels * 0.5 + 0.5 - mean) / std).detach()  # the student's are 0.5 and 0.5
    assert student.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    assert objective(LOGITS, pixels, LABELS) == pytest.approx(float(against(LOGITS, guess, "soft", 1.0)), rel=1e-4)


@pytest.fixture
def moments() -> tuple[Tensor, Tensor]:
    return torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1), torch.tensor([0.1, 0.3, 0.2]).view(1, 3, 1, 1)


def test_timms_teacher_sees_images_in_memory_as_it_was_trained_to(monkeypatch, moments):
    made = timm.create_model("deit_tiny_patch16_224", **{**VIT, "num_classes": 3, "in_chans": 3})
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: made)
    recipe = Recipe(distillation=Distillation(teacher="deit_large", kind="soft", share=1.0))
    objective = Objective(recipe, vit(num_classes=3, in_chans=3), CPU, moments)
    pixels = PIXELS.expand(8, 3, 12, 12)
    mean, std = (torch.tensor(made.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    guess = made.eval()((pixels * moments[1] + moments[0] - mean) / std).detach()
    assert objective(LOGITS, pixels, LABELS) == pytest.approx(float(against(LOGITS, guess, "soft", 1.0)), rel=1e-4)


def test_a_files_teacher_learned_from_the_same_images_in_memory(tmp_path, moments):
    arguments = {**VIT, "num_classes": 3, "in_chans": 3}
    model = timm.create_model("deit_tiny_patch16_224", **arguments).eval()
    svite.save(model, tmp_path / "teacher.safetensors", build=("deit_tiny_patch16_224", arguments))
    recipe = Recipe(distillation=Distillation(teacher=str(tmp_path / "teacher.safetensors"), share=1.0, kind="soft"))
    objective = Objective(recipe, vit(num_classes=3, in_chans=3), CPU, moments)
    pixels = PIXELS.expand(8, 3, 12, 12)
    wanted = against(LOGITS, model(pixels).detach(), "soft", 1.0)
    assert objective(LOGITS, pixels, LABELS) == pytest.approx(float(wanted), rel=1e-4)


def test_a_teacher_of_another_family_sees_grey_images_as_they_are(teacher):
    path, model = teacher
    student = timm.create_model("deit_tiny_patch16_224", **{**VIT, "num_classes": 3})
    made = Objective(Recipe(distillation=Distillation(teacher=path, share=1.0)), student, CPU)
    wanted = against(LOGITS, model(PIXELS).detach(), "hard", 1.0)
    assert made(LOGITS, PIXELS, LABELS) == pytest.approx(float(wanted), rel=1e-4)


def test_teachers_that_do_not_fit_get_one_sentence(teacher, images):
    def said(path: str, **model: object) -> str:
        run = a_run("dense", distillation=Distillation(teacher=path))
        with pytest.raises(ValueError, match=r"^recipe\.distillation\.teacher: .*\.$") as caught:
            loop_of(run.model_copy(update={"model": Model(**{**MODEL.model_dump(), **model})}), images)
        return str(caught.value)

    assert "knows 3 classes, the model 4" in said(teacher[0], num_classes=4)
    assert "can't see images of 1 x 16 x 16" in said(teacher[0], img_size=16)
    assert "can't see images of 3 x 12 x 12" in said(teacher[0], in_chans=3)
    assert "no file, and" in said("no_such_teacher")


def test_the_teacher_never_changes_and_another_file_is_another_run(teacher, images):
    run = a_run("svite", distillation=Distillation(teacher=teacher[0]), optimizer="sgd")
    loop = loop_of(run, images)
    before, identity = weights_of(loop.objective.teaching), results.identity(run, images, None)
    steps_of(loop, 2)
    assert same(before, weights_of(loop.objective.teaching))
    assert not any(module.training for module in loop.objective.teaching.teacher.model.modules())
    assert not set(loop.objective.teaching.parameters()) & set(loop.plain_model.parameters())
    svite.save(vit(num_classes=3), teacher[0], build=("vit_tiny_patch16_224", {**VIT, "num_classes": 3}))
    assert results.identity(run, images, None) != identity


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_student_with_a_distillation_token_learns_from_the_teacher_with_it(ema, teacher, images, tmp_path):
    run = a_run("svite", epochs=1, distillation=Distillation(teacher=teacher[0], share=1.0), ema=ema)
    run = run.model_copy(update={"model": DISTILLED})
    loop = loop_of(run, images)
    loop.model.train()
    loop._backward(*next(loop.batches))
    assert not loop.plain_model.head.weight.grad.any()
    assert loop.plain_model.head_dist.weight.grad.any()
    results.train(run, images, tmp_path)
    model, _ = load_model(tmp_path / "models" / f"{run.key}.safetensors")
    assert model(PIXELS).shape == (8, 3)


# Gradients


def gradients(run: object, images: Data) -> dict[str, Tensor]:
    loop = loop_of(run, images)
    loop.model.train()
    loop._backward(*next(loop.batches))
    return {name: parameter.grad for name, parameter in loop.plain_model.named_parameters()}


@pytest.mark.parametrize("method", ["dense", "svite", "s2vite"])
@pytest.mark.parametrize("parts", [2, 4])
def test_gradients_in_parts_are_those_of_the_whole_batch(method, parts, images):
    whole, found = (gradients(a_run(method, accumulate=n), images) for n in (1, parts))
    for name, gradient in whole.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-6), name
        assert gradient.any() or "qkv.bias" in name or method != "dense", name


def test_the_first_steps_in_parts_choose_the_same_topology(images):
    whole, parts = (loop_of(a_run("svite", accumulate=n, smoothing=0.0), images) for n in (1, 4))
    for loop in (whole, parts):
        steps_of(loop, 5)
    assert whole.sparsifier.updates
    assert same(whole.sparsifier.masks, parts.sparsifier.masks)
    for name, weight in whole.plain_model.state_dict().items():
        assert torch.allclose(weight, parts.plain_model.state_dict()[name], atol=1e-4), name


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_clipped_to_the_norm_after_masking_and_unscaling(precision, images, monkeypatch):
    loop, norms = loop_of(a_run("svite", clip=0.01, optimizer="sgd", precision=precision), images), []
    step = loop.optimizer.step

    def look() -> None:
        gradients = [parameter.grad for parameter in loop.plain_model.parameters() if parameter.grad is not None]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
        step()

    monkeypatch.setattr(loop.optimizer, "step", look)
    steps_of(loop, 2)
    assert norms == pytest.approx([0.01] * 2, rel=1e-3)  # before masking, the dead would have a share


def test_earlier_blocks_learn_slower_by_the_layer_decay(images):
    run = a_run("dense", layer_decay=0.5, warmup=0.0)
    loop = loop_of(run.model_copy(update={"model": Model(**{**MODEL.model_dump(), "depth": 3})}), images)
    steps_of(loop, loop.per_epoch)
    rates = {id(p): group["lr"] for group in loop.optimizer.param_groups for p in group["params"]}
    model = loop.plain_model
    layers = [model.patch_embed.proj, *(block.mlp.fc1 for block in model.blocks), model.head]
    found = [rates[id(layer.weight)] for layer in layers]
    assert [rate / found[-1] for rate in found] == pytest.approx([0.5**k for k in (4, 3, 2, 1, 0)])
    assert loop.rows[0]["lr"] == found[-1]
