"""Loops that are not ours: the examples in docs/loops, run as a reader would copy them, at toy size."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from tiny import dead_are_zero, made, same, vit, weights_of
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from svite.sparsity.mask import count
from svite.sparsity.sparsifier import Sparsifier

pytestmark = [
    pytest.mark.xdist_group("loops"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*no accelerator"),
    pytest.mark.filterwarnings("ignore:.*tensorboardX"),
    pytest.mark.filterwarnings("ignore:.*not supported by the model summary"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "interval": 2}
BATCHES = {"epochs": 3, "batch": 2, "accumulate": 2}
IMAGES, CLASSES = 22, 5
EPOCH, STEPS = 6, 18  # optimizer steps; the last of an epoch is of one batch alone


@dataclass
class Trained:
    """What an example left: the model, its sparsifier, the averaged model where there is one, a checkpoint an epoch."""

    model: nn.Module
    sparsifier: Sparsifier
    average: nn.Module | None
    checkpoint: Path


def example(name: str) -> ModuleType:
    path = Path(__file__).parent.parent / "docs" / "loops" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def images() -> TensorDataset:
    torch.manual_seed(0)
    return TensorDataset(torch.randn(IMAGES, 3, 16, 16), torch.randint(CLASSES, (IMAGES,)))


def with_timm(folder: Path, resume: Path | None = None, **settings: object) -> Trained:
    torch.manual_seed(0)
    module = example("timm_train")
    data = module.FakeData(IMAGES, (3, 16, 16), CLASSES)
    model, ema, sparsifier = module.train(data, str(folder), resume=resume, **BATCHES, **VIT, **settings)
    return Trained(model, sparsifier, ema, folder / "checkpoint-0.pth.tar")


def with_lightning(folder: Path, resume: Path | None = None) -> Trained:
    torch.manual_seed(0)
    module = example("lightning_module").train(images(), folder, resume=resume, num_classes=CLASSES, **BATCHES, **VIT)
    return Trained(module.model, module.sparsifier, module.model, folder / f"epoch=0-step={EPOCH}.ckpt")


def with_hugging_face(folder: Path, resume: Path | None = None) -> Trained:
    torch.manual_seed(0)
    model, sparsifier = example("hf_trainer").train(
        images(), str(folder), resume=resume and str(resume), num_classes=CLASSES, **BATCHES, **VIT
    )
    return Trained(model, sparsifier, None, folder / f"checkpoint-{EPOCH}")


LOOPS: dict[str, Callable[..., Trained]] = {
    "timm": with_timm,
    "lightning": with_lightning,
    "hugging face": with_hugging_face,
}
loops = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)


def scaler(init_scale: float) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=init_scale)


def overflowing() -> torch.amp.GradScaler:
    """Halves its scale some times before the first gradient of half precision is finite."""
    return scaler(2.0**22)


@pytest.fixture(autouse=True)
def no_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's example skips no step: at torch's own first scale one of its gradients may be too large."""
    from timm.utils import NativeScaler

    monkeypatch.setattr(NativeScaler, "__init__", lambda self, device: setattr(self, "_scaler", scaler(16.0)))


@pytest.fixture(autouse=True)
def one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples take every GPU that they find."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def dead_gradients(sparsifier: Sparsifier) -> bool:
    return any(bool(weight.grad[~sparsifier.masks[name]].any()) for name, weight in sparsifier.weights.items())


@pytest.fixture
def clipped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """What each call of torch's clipping saw: the sparsifier's step, and whether a dead weight had a gradient."""
    seen, attached = [], []
    attach, clip = Sparsifier.attach, torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(Sparsifier, "attach", lambda self, *given: attached.append(self) or attach(self, *given))

    def look(*given: object, **named: object) -> Tensor:
        (sparsifier,) = attached
        seen.append((sparsifier.step, dead_gradients(sparsifier)))
        return clip(*given, **named)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", look)
    return seen


def check_topology(trained: Trained) -> None:
    sparsifier = trained.sparsifier
    for pool in sparsifier.pools:
        assert sum(int(sparsifier.alive[unit.name].sum()) for unit in pool.units) == count(pool.density, pool.members)
    assert sum(update.born for update in sparsifier.updates) > 0
    assert dead_are_zero(sparsifier)
    assert all(name in dict(trained.model.named_parameters()) for name in sparsifier.masks)


@loops
def test_an_example_trains_with_exact_counts_and_clips_masked_gradients(loop, tmp_path, clipped):
    trained = loop(tmp_path)
    check_topology(trained)
    updates = [update.step for update in trained.sparsifier.updates]
    assert updates == [2, 4, 6, 8, 10, 12, 14]
    assert clipped == [(step, step in updates) for step in range(STEPS)]  # accumulated batches are one step
    assert trained.sparsifier.step == STEPS


@loops
def test_a_resumed_example_ends_as_the_uninterrupted_one_bit_for_bit(loop, tmp_path):
    whole = loop(tmp_path)
    resumed = loop(tmp_path, resume=whole.checkpoint)
    assert same(weights_of(whole.model), weights_of(resumed.model))
    assert same(whole.sparsifier.masks, resumed.sparsifier.masks)
    assert whole.sparsifier.summary().equals(resumed.sparsifier.summary())
    if whole.average:
        assert same(weights_of(whole.average), weights_of(resumed.average))


def test_the_topology_of_an_earlier_checkpoint_of_hugging_face_is_fetched_as_its_readme_says(tmp_path):
    trained = with_hugging_face(tmp_path)
    saved = load_file(trained.checkpoint / "model.safetensors")
    best = {name.removeprefix("model."): value for name, value in saved.items()}
    trained.model.load_state_dict(best)
    assert not dead_are_zero(trained.sparsifier)
    optimizer = torch.load(trained.checkpoint / "optimizer.pt", weights_only=True)
    trained.sparsifier.load_state_dict(optimizer["sparsifier"])
    assert trained.sparsifier.step == EPOCH
    assert same(weights_of(trained.model), best)


def check_average(sparsifier: Sparsifier, average: dict[str, Tensor]) -> None:
    values = {name: average[name] for name in sparsifier.masks}
    assert not any(bool(values[name][~alive].any()) for name, alive in sparsifier.masks.items())
    living = sum(int(value.count_nonzero()) for value in values.values())
    assert 0.4 < living / sum(value.numel() for value in values.values()) <= sparsifier.density


def test_timms_average_is_as_sparse_as_the_model(tmp_path):
    trained = with_timm(tmp_path)
    check_average(trained.sparsifier, trained.average.module.state_dict())
    assert not same(weights_of(trained.model), weights_of(trained.average.module))


def test_lightnings_average_is_as_sparse_as_the_model_in_its_checkpoint_and_in_the_end(tmp_path):
    trained = with_lightning(tmp_path)
    saved = torch.load(tmp_path / f"epoch=2-step={STEPS}.ckpt", weights_only=True)
    average, current = (
        {name.removeprefix("model."): value for name, value in saved[key].items()}
        for key in ("state_dict", "current_model_state")
    )
    check_average(trained.sparsifier, average)
    assert same(average, weights_of(trained.model))
    assert not same(average, current)


def test_the_average_of_timms_task_is_masked_by_name():
    from timm.task import ClassificationTask

    model = vit()
    sparsifier = made("svite", model)
    ema = ClassificationTask(model).setup_ema()
    for value in ema.parameters():
        value.data.fill_(1.0)
    sparsifier.apply(ema)
    check_average(sparsifier, ema.module.state_dict())


# Lightning's manual optimization, clipping by unit, skipped steps


def test_manual_optimization_of_lightning_needs_nothing_else(tmp_path):
    from lightning import Trainer

    class Manual(example("lightning_module").Classifier):
        automatic_optimization = False

        def training_step(self, batch, index):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, index))
            optimizer.step()

    torch.manual_seed(0)
    module = Manual(IMAGES // 2, num_classes=CLASSES, **VIT)
    Trainer(max_epochs=1, default_root_dir=tmp_path).fit(module, DataLoader(images(), 2))
    check_topology(Trained(module.model, module.sparsifier, None, tmp_path))
    assert module.sparsifier.step == IMAGES // 2


def test_adaptive_clipping_of_timm_keeps_counts_exact(tmp_path, monkeypatch):
    import timm.utils.clip_grad

    calls, clip = [], timm.utils.clip_grad.adaptive_clip_grad
    monkeypatch.setattr(
        timm.utils.clip_grad, "adaptive_clip_grad", lambda *given, **named: calls.append(clip(*given, **named))
    )
    check_topology(with_timm(tmp_path, clip_mode="agc"))
    assert len(calls) == STEPS


def steps_of(optimizer: Optimizer) -> set[int]:
    return {int(state["step"]) for state in optimizer.state.values()}


def test_steps_that_timms_scaler_skips_do_not_count(tmp_path, monkeypatch):
    from timm.utils import NativeScaler

    monkeypatch.setattr(NativeScaler, "__init__", lambda self, device: setattr(self, "_scaler", overflowing()))
    trained = with_timm(tmp_path)
    check_topology(trained)
    assert {trained.sparsifier.step} == steps_of(trained.sparsifier.attachment.optimizers[0])
    assert 2 < trained.sparsifier.step < STEPS


def test_steps_that_lightnings_scaler_skips_do_not_count(tmp_path):
    from lightning import Trainer
    from lightning.pytorch.plugins.precision import MixedPrecision

    torch.manual_seed(0)
    module = example("lightning_module").Classifier(STEPS, num_classes=CLASSES, **VIT)
    trainer = Trainer(
        max_epochs=3,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        plugins=MixedPrecision("16-mixed", "cpu", overflowing()),
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(images(), 2))
    check_topology(Trained(module.model, module.sparsifier, None, tmp_path))
    assert {module.sparsifier.step} == steps_of(trainer.optimizers[0])
    assert 2 < module.sparsifier.step < STEPS
