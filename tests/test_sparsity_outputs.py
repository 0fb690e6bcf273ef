"""The score of heads and neurons by their outputs, image by image, against a loop over images."""

import gc
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from tiny import adamw, batch, vit
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import svite
from svite import methods
from svite.sparsity.cut import Cut, Part, Unit
from svite.sparsity.outputs import Listener
from svite.sparsity.pool import Pool, uniform
from svite.sparsity.rule import DropGrow, Prune
from svite.sparsity.schedule import constant, every
from svite.sparsity.score import gradient, output_change
from svite.sparsity.sparsifier import Sparsifier
from svite.vit.structure import heads, neurons, structures

BREAK = "ignore:The .grad attribute of a Tensor that is not a leaf"  # torch.compile's own, behind a graph break
READERS = {"heads": "attn.proj", "neurons": "mlp.fc2"}


def model_of(**arguments: object) -> nn.Module:
    model = vit(**{"depth": 2, "num_heads": 4, "mlp_ratio": 2.0, **arguments})
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model


def listening(model: nn.Module, rule: object = None, density: float = 0.5) -> Sparsifier:
    """Every step is scored, from the first on."""
    rule = rule or Prune(output_change, batches=2)
    return Sparsifier(model, uniform(structures(model), density), rule, every(1, until=99))


def by_hand(model: nn.Module, images: Tensor, labels: Tensor, members: int = 0) -> dict[str, Tensor]:
    """Mean over images of |sum over positions of output times gradient|: one image, one head, one neuron at a time."""
    found, seen = {}, {}
    for name, module in model.named_modules():
        if name.endswith(tuple(READERS.values())):
            module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    for image, label in zip(images, labels, strict=True):
        loss = cross_entropy(model(image[None]), label[None])
        for name, slope in zip(seen, torch.autograd.grad(loss, list(seen.values())), strict=True):
            what = "heads" if name.endswith("proj") else "neurons"
            count = members or (4 if what == "heads" else slope.shape[-1])
            products = (seen[name].detach() * slope)[0]
            width = products.shape[1] // count
            each = [abs(float(products[:, m * width : (m + 1) * width].sum())) for m in range(count)]
            unit = f"{name.rpartition('.')[0]}.{what}"
            found[unit] = found.get(unit, 0) + torch.tensor(each)[None] / len(images)
    return found


def scores(sparsifier: Sparsifier) -> dict[str, Tensor]:
    return {name: sparsifier.scoring.now(output_change, name, 0) for name in sparsifier.units}


def near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    assert found.keys() == expected.keys()
    return all(torch.allclose(found[n], e, rtol=1e-3, atol=1e-3 * float(e.max())) for n, e in expected.items())


def at_once(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> None:
    cross_entropy(model(images), labels).backward()


def in_parts(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    for each in zip(images.chunk(4), labels.chunk(4), strict=True):
        (cross_entropy(model(each[0]), each[1]) / 4).backward()


def in_two_passes_at_once(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    losses = [cross_entropy(model(x), y) / 2 for x, y in zip(images.chunk(2), labels.chunk(2), strict=True)]
    sum(losses).backward()


def scaled(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=2.0**9), adamw(model)
    scaler.scale(cross_entropy(model(images), labels)).backward()
    scaler.unscale_(optimizer)


def in_half_precision(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(model(images), labels)
    loss.backward()


def compiled(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    at_once(torch.compile(model, backend="aot_eager"), images, labels)


def checkpointed(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    model.set_grad_checkpointing()
    at_once(model, images, labels)


def evaluated_between(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    loss = cross_entropy(model(images), labels)
    with torch.no_grad():
        model.eval()(images)
    model.train()
    loss.backward()


WAYS: list[Callable] = [at_once, in_parts, in_two_passes_at_once, scaled, compiled, checkpointed, evaluated_between]


@pytest.mark.filterwarnings(BREAK)
@pytest.mark.parametrize("way", WAYS)
def test_scores_are_those_of_a_loop_over_images(way):
    model, (images, labels) = model_of(), batch(0, 8)
    sparsifier = listening(model)
    expected = by_hand(deepcopy(model), images, labels)
    way(model, images, labels)
    assert near(scores(sparsifier), expected)
    torch.compiler.reset()


def test_scores_in_half_precision_are_near():
    model, (images, labels) = model_of(), batch(0, 8)
    sparsifier = listening(model)
    in_half_precision(model, images, labels)
    for name, expected in by_hand(deepcopy(model), images, labels).items():
        assert torch.corrcoef(torch.stack([scores(sparsifier)[name][0], expected[0]]))[0, 1] > 0.98


@pytest.mark.filterwarnings(BREAK)
def test_a_compiled_model_is_listened_to_in_scored_steps_only():
    model = model_of()
    optimizer = adamw(model)
    sparsifier = Sparsifier(model, uniform(heads(model), 0.5), Prune(output_change), every(3, until=99))
    forward, heard = torch.compile(model, backend="aot_eager"), []
    for step in range(5):
        optimizer.zero_grad()
        at_once(forward, *batch(step))
        heard.append(all(each.sums is not None for each in sparsifier.scoring.outputs.listeners.values()))
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
    assert heard == [False, False, False, True, False]
    torch.compiler.reset()


@pytest.mark.parametrize("cut", [heads, neurons])
def test_a_narrow_layers_scores_are_those_of_its_active_members(cut):
    model, (images, labels) = model_of(), batch(3, 8)
    optimizer = adamw(model)
    sparsifier = Sparsifier(model, uniform(cut(model), 0.5), Prune(output_change, batches=2), every(1, until=99))
    svite.narrow(model, sparsifier)
    at_once(model, *batch(0))
    sparsifier.before_step(optimizer)
    optimizer.step()
    sparsifier.after_step()
    optimizer.zero_grad()
    at_once(model, *batch(1))
    sparsifier.before_step(optimizer)
    optimizer.step()
    sparsifier.after_step()
    assert sparsifier.density == 0.5
    optimizer.zero_grad()
    expected = by_hand(deepcopy(sparsifier).model.eval(), images, labels)
    at_once(model, images, labels)
    widths = {each.members * each.width for each in sparsifier.scoring.outputs.listeners.values()}
    assert widths == {16 if cut is heads else 32}
    assert near(scores(sparsifier), {name: expected[name] for name in sparsifier.units})
    for name, found in scores(sparsifier).items():
        assert not found[~sparsifier.alive[name]].any()
        assert found[sparsifier.alive[name]].all()


class Pair(nn.Module):
    """Two neurons, whose second output is turned around by the label."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
        self.make.weight.data, self.read.weight.data = torch.tensor([[0.1], [1.0]]), torch.ones(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.make(x))


def test_images_that_cancel_in_the_batch_do_not_cancel_in_the_score():
    model = Pair()
    weights = dict(model.named_parameters())
    parts = [Part("make.weight", Cut("neuron i -> 1 neuron i"), outgoing=False)]
    parts += [Part("read.weight", Cut("o neuron -> 1 neuron o"))]
    unit = Unit.of("neurons", parts, weights, reader="read")
    sparsifier = Sparsifier(model, [Pool((unit,), 0.5)], Prune(output_change, batches=2), every(1, until=99))
    model(torch.ones(2, 1)).mul(torch.tensor([[1.0], [-1.0]])).mean().backward()
    assert not (model.read.weight * model.read.weight.grad).any()  # what a batch tells
    assert scores(sparsifier)["neurons"].tolist() == [pytest.approx([0.1, 1.0])]


def test_batches_are_averaged_whatever_the_loss_was_scaled_by():
    model = model_of()
    optimizer = adamw(model)
    sparsifier = Sparsifier(model, uniform(structures(model), 0.5), Prune(output_change, batches=3), every(9, until=99))
    expected = []
    for step, scale in enumerate([1.0] * 7 + [2.0**4, 2.0**11]):
        optimizer.zero_grad()
        if step > 6:
            expected.append(by_hand(deepcopy(model), *batch(step)))
        (cross_entropy(model(batch(step)[0]), batch(step)[1]) * scale).backward()
        for parameter in model.parameters():
            parameter.grad /= scale
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
    found = {name: sparsifier.scoring.averaged(output_change, name, 0) for name in sparsifier.units}
    assert near(found, {name: (expected[0][name] + expected[1][name]) / 2 for name in found})


def test_what_a_scaler_skips_is_not_counted():
    model = model_of()
    sparsifier = listening(model)
    (cross_entropy(model(batch(1)[0]), batch(1)[1]) * torch.inf).backward()
    model.zero_grad()
    expected = by_hand(deepcopy(model), *batch(0))
    at_once(model, *batch(0))
    assert near(scores(sparsifier), expected)


def listeners(model: nn.Module) -> list[Listener]:
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    return [hook for hook in hooks if isinstance(hook, Listener)]


def test_hooks_are_on_what_is_asked_about_and_go_with_it():
    model = model_of()
    optimizer, sparsifier = adamw(model), listening(model)
    assert len(listeners(model)) == 4
    sparsifier.drop("blocks.0.attn")
    assert {each.unit for each in listeners(model)} == sparsifier.units.keys()
    attachment = sparsifier.attach(optimizer)
    attachment.remove()
    assert not listeners(model)
    again = sparsifier.attach(optimizer)
    assert len(listeners(model)) == 3
    at_once(model, *batch(0))
    assert all(each.sums is not None for each in listeners(model))
    again.remove()
    assert not listeners(model)
    for other in ("svite", "rigl", "omp"):
        density = {"cut": heads}
        getattr(methods, other)(model, 0.5, **density, **({} if other == "omp" else {"steps": 9}))
        assert not listeners(model)


def test_a_later_sparsifier_takes_the_place_of_an_earlier_one():
    model = model_of()
    first = listening(model)
    at_once(model, *batch(0))
    second = listening(model)
    assert [each in second.scoring.outputs.listeners.values() for each in listeners(model)] == [True] * 4
    del first
    gc.collect()
    assert len(listeners(model)) == 4


def test_steps_that_are_not_scored_are_not_listened_to():
    model = model_of()
    optimizer, sparsifier = adamw(model), methods.s2vite(model, 0.5, 0.5, 40, interval=3)
    heard = []
    for step in range(7):
        optimizer.zero_grad()
        at_once(model, *batch(step))
        heard.append(all(each.sums is not None for each in listeners(model)))
        sparsifier.before_step(optimizer)
        assert all(each.sums is None and not each.on for each in listeners(model))
        optimizer.step()
        sparsifier.after_step()
    assert heard == [step in (3, 6) for step in range(7)]
    assert {each.unit for each in listeners(model)} == {f"blocks.{n}.attn.heads" for n in (0, 1)}


def test_a_copy_of_the_model_is_not_listened_to_and_one_with_its_sparsifier_is_in_the_middle_of_a_step():
    model = model_of()
    optimizer, sparsifier = adamw(model), listening(model)
    at_once(model, *batch(0))
    alone = deepcopy(model)
    at_once(alone, *batch(1))
    assert not any(each.on or each.sums is not None for each in listeners(alone))
    twin, other, _ = deepcopy((model, sparsifier, optimizer))
    for parameter, own in zip(twin.parameters(), model.parameters(), strict=True):
        parameter.grad = own.grad.clone()
    for trained in (model, twin):
        at_once(trained, *batch(2))
    assert near(scores(other), scores(sparsifier))
    assert {id(each) for each in listeners(twin)}.isdisjoint(map(id, listeners(model)))


def test_a_copy_that_the_sparsifier_goes_on_with_is_listened_to_in_its_place():
    model = model_of()
    sparsifier = listening(model)
    twin = deepcopy(model)
    sparsifier.rebind(twin)
    assert not listeners(model)
    expected = by_hand(deepcopy(twin), *batch(0))
    at_once(twin, *batch(0))
    assert near(scores(sparsifier), expected)


def test_a_step_whose_forward_pass_came_first_is_not_scored_and_then_the_next_is():
    model = model_of()
    optimizer = adamw(model)
    at_once(model, *batch(0))
    sparsifier = listening(model)
    for step in (1, 2, 3):
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
        optimizer.zero_grad()
        at_once(model, *batch(step))
    assert [update.step for update in sparsifier.updates] == [1, 2]


def test_a_model_that_is_not_called_as_a_whole_is_an_error():
    model = model_of()
    parts = nn.ModuleList([model])  # someone else's forward pass, which calls methods of the model
    with pytest.raises(ValueError, match=r"^No forward pass of the model was seen, which scores need; call the"):
        for_three_steps(model, lambda x: parts[0].forward_head(parts[0].forward_features(x)))


def test_a_model_that_trains_in_eval_mode_is_listened_to_as_well():
    model = model_of().eval()
    assert [update.step for update in for_three_steps(model, model).updates] == [1, 2]


def for_three_steps(model: nn.Module, forward: Callable[[Tensor], Tensor]) -> Sparsifier:
    optimizer, sparsifier = adamw(model), listening(model)
    for step in range(3):
        optimizer.zero_grad()
        at_once(forward, *batch(step))
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
    return sparsifier


def test_a_part_without_a_backward_pass_is_named():
    model = model_of()
    sparsifier = listening(model)
    at_once(model, *batch(0))
    sparsifier.scoring.outputs.listeners["blocks.1.attn.heads"].sums = None
    with pytest.raises(ValueError, match=r"^No backward pass through blocks\.1\.attn\.proj was seen in this step"):
        scores(sparsifier)


@pytest.mark.parametrize("cut", [heads, neurons, structures])
def test_taylor_scores_whole_structures_by_their_outputs(cut):
    model = model_of()
    sparsifier = methods.taylor(model, 0.5, 24, cut=cut)
    assert {rule.score for rule in sparsifier.rules} == {output_change}
    assert {each.unit for each in listeners(model)} == sparsifier.units.keys()
    assert methods.taylor(vit(), 0.5, 24).rules[0].score is not output_change


def test_growth_and_drops_are_of_the_same_step():
    model = model_of()
    sparsifier = listening(model, DropGrow(output_change, gradient, constant(0.5), batches=2))
    expected = by_hand(deepcopy(model), *batch(0))
    at_once(model, *batch(0))
    found = scores(sparsifier)
    assert all(torch.allclose(found[n], e, rtol=1e-3, atol=1e-6) for n, e in expected.items())
