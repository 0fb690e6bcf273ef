"""The plan on paper: its arithmetic, its page, and the parts of it that are measured, on a toy."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from benchmarks import memory, plan, scale
from benchmarks.training import Training
from svite.methods import svite
from svite.train.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
TOY = "test_vit"
FOUND = plan.Measured(masks=1.1, peak=4.0, update=2.0, stored=1e9, written=3.0, kept=50e6)
RUN = plan.Planned(100_000_000, 99_000_000, macs=20e9, batch=1024, epochs=300, interval=3000)


def cells(rows: list[plan.Row], start: str) -> list[str]:
    return next(values for name, _, values in rows if name.startswith(start))


def test_memory_adds_up():
    rows = plan.held(RUN, FOUND)
    assert cells(rows, "weights, fp32") == ["400 MB", "400 MB", "50 MB", "12 MB"]
    assert cells(rows, "sparsifier") == ["110 MB", "110 MB", "38 MB", "28 MB"]
    assert cells(rows, "activations") == ["6.40 GB", "1.60 GB"] * 2
    ddp, fsdp = 26 * 0.1 + 0.11 + 6.4, 20 * 0.1 / 32 + 0.2 + 0.028125 + 1.6
    assert (cells(rows, "**all**")[0], cells(rows, "**all**")[3]) == (f"{ddp:.2f} GB", f"{fsdp:.2f} GB")


def test_what_is_sent_is_that_of_a_ring():
    rows = plan.moved(RUN)
    assert cells(rows, "DDP") == ["700 MB", "775 MB"]
    assert cells(rows, "FSDP2") == ["1.05 GB", "1.16 GB"]
    assert cells(rows, "images to the GPU") == ["77 MB", "19 MB"]


def test_hours_are_operations_over_the_rate():
    rows = plan.took(RUN)
    assert cells(rows, "steps") == ["375,300"] * 2
    hours = 375_300 * 6 * 20e9 * 1024 / (8 * plan.RATE) / 3600
    assert cells(rows, "the run") == [f"{hours:.1f} h", f"{hours / 4:.1f} h"]
    assert cells(plan.added(RUN, FOUND), "all of them") == ["200 s"]
    assert cells(plan.added(RUN, FOUND), "a checkpoint;") == ["1.40 GB"]


def test_the_run_is_that_of_the_recipe():
    run = plan.Planned.read()
    assert run.parameters == 86_567_656
    assert run.macs == pytest.approx(17.6e9, rel=0.01)
    assert (run.batch, run.epochs, run.interval, run.updates) == (1024, 300, 7000, 42)


def claims_file(path: Path, *left_out: str) -> Path:
    names = (memory.HELD, memory.MOMENT, scale.UPDATE, scale.STORED, scale.WRITTEN, scale.KEPT)
    claims = [{"part": "scale", "name": f"{name} of it", "value": i} for i, name in enumerate(names)]
    path.write_text(json.dumps({"claims": [c for c in claims if c["value"] not in map(names.index, left_out)]}))
    return path


def test_every_number_finds_its_claim(tmp_path):
    assert plan.Measured.read(claims_file(tmp_path / "bench.json")) == plan.Measured(0, 1, 2, 3, 4, 5)


def test_what_was_not_measured_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"does not say 'size of a checkpoint'; run `python -m benchmarks --only"):
        plan.Measured.read(claims_file(tmp_path / "bench.json", scale.STORED))


def test_the_page_agrees_with_what_was_measured():
    found = plan.Measured.read(ROOT / "reports/bench.json")
    between = (ROOT / "docs/scale.md").read_text().split(plan.MARKS[0])[1].split(plan.MARKS[1])[0]
    expected = plan.markdown(plan.Planned.read(), found)
    assert between.strip() == expected, "run `python -m benchmarks.plan`"


def test_a_checkpoint_is_measured_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training = Training(timm.create_model(TOY), 2, lambda model: svite(model, 0.5, 100))
    training.step()
    written = []
    save = scale.save_checkpoint

    def remembered(path, state):
        save(path, state)
        written.append((path.stat().st_size, load_checkpoint(path)))

    monkeypatch.setattr(scale, "save_checkpoint", remembered)
    size, seconds = scale.checkpoint(training)
    (expected, state), parameters = written[0], sum(p.numel() for p in training.model.parameters())
    assert size == expected > 12 * parameters  # weights and two moments, at four bytes
    assert {*state} == {"model", "optimizer", "sparsifier"}
    assert seconds > 0
    assert not list((tmp_path / ".scratch").iterdir())


def test_what_autograd_keeps_is_counted_once():
    layer, rows = nn.Linear(8, 4, bias=False), torch.randn(3, 8)
    assert scale.kept(lambda: layer(rows)) == 4 * 3 * 8  # its input, for the gradient of its weight
    assert scale.kept(lambda: layer(rows) + layer(rows)) == 4 * 3 * 8


def test_activations_are_those_of_one_image():
    model = timm.create_model(TOY)
    tokens, width, depth = 1 + model.patch_embed.num_patches, model.embed_dim, len(model.blocks)
    least = (
        depth * tokens * width * 2 * 13
    )  # queries to values, their sum, two normed inputs, four wide ones twice: bf16
    assert least < scale.activations(TOY) < 4 * least
