"""Crafted files whose checksum fits: one sentence, soon and in little room, or the model that they describe."""

import re
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from tiny import vit
from tiny_crafted import HUGE, loaded_elsewhere, nested
from tiny_kinds import DEEP, KINDS, NAME, saved
from torch import Tensor, nn

from svite.io.bounded import parts_at_most
from svite.io.container import _KEY, read_container, write_container
from svite.io.saved import load, note_of, save
from svite.train.models import load_model

pytestmark = pytest.mark.xdist_group("saved models")


def refused(path: Path) -> str:
    """The sentence that ends it."""
    with pytest.raises(ValueError, match=f"^{path} ") as caught:
        load(path)
    said = str(caught.value)
    assert "\n" not in said
    assert said.isprintable()
    assert said.endswith(".")
    assert len(said) < 1000
    return said


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("intact"), KINDS["all at once"]())


def crafted(folder: Path, path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> Path:
    document, tensors = read_container(path)
    change(document, tensors)
    write_container(folder / "crafted.safetensors", document, tensors)
    return folder / "crafted.safetensors"


def put(word: str, **arguments: object) -> Callable[[dict, dict], None]:
    return lambda document, _: document["spec"]["edits"].append({"at": "head", "put": [word, arguments]})


def given(**arguments: object) -> Callable[[dict, dict], None]:
    return lambda document, _: document["spec"]["arguments"].update(arguments)


LINEAR = {"in_features": 10**5, "out_features": 10**5, "bias": True}
SPEC = {
    "a layer on the CPU": (put("Linear", **LINEAR, device="cpu"), "Linear takes in_features, out_features, bias, and"),
    "a layer of another dtype": (put("Linear", **LINEAR, dtype="float64"), "Linear takes in_features, out_features"),
    "a layer that is too large": (put("Linear", **LINEAR), "head.weight is of shape"),
    "a width that is text": (put("Linear", in_features="16", out_features=5, bias=True), "Linear takes in_features"),
    "a scale on the CPU": (put("LayerScale", dim=HUGE, inplace=False, device="cpu"), "LayerScale takes dim, inplace"),
    "an identity of something": (put("Identity", device="cpu"), "Identity takes nothing, and not"),
    "a part on the CPU": (
        put("Sequential", parts=[["Linear", {**LINEAR, "device": "cpu"}]]),
        "Linear takes in_features",
    ),
    "parts in parts": (
        lambda d, _: d["spec"]["edits"].append({"at": "head", "put": ["Sequential", {"parts": nested(300)}]}),
        "",
    ),
    "a selector elsewhere": (
        lambda d, _: d["spec"]["edits"].append({"at": "x.0", "put": ["Selector", {"keep": 0.5, "scorer": "Learned"}]}),
        "a selector can't stand at x.0",
    ),
    "many layers": (given(depth=60_000), "fails to build it .*it has more than"),
    "a table without end": (
        lambda d, _: d["spec"].update(name="maxvit_tiny_tf_224", arguments={"img_size": 60_000}, edits=[]),
        "fails to build it .*it takes longer to build",
    ),
    "a number beyond all": (given(depth=HUGE), "an argument has a number that is larger than all"),
    "a number beyond all, inside": (given(img_size=[HUGE, HUGE]), "an argument has a number that is larger than all"),
    "many classes": (given(num_classes=65_000), "head.weight is of shape|num_classes"),
    "deep arguments": (given(img_size=nested(300)), "is no plain value"),
    "an edit of two kinds": (
        lambda d, _: d["spec"]["edits"].append({"at": "", "put": ["Identity", {}], "set": {}}),
        "an edit should say where, and what",
    ),
    "an edit that is none": (lambda d, _: d["spec"]["edits"].append([]), ""),
    "a switch that is a number": (
        lambda d, _: d["spec"]["edits"].append({"at": "", "set": {"grad_checkpointing": 1}}),
        "grad_checkpointing can't be set to 1",
    ),
    "heads that do not fit": (
        lambda d, _: d["spec"]["edits"].append({"at": "blocks.1.attn", "set": {"num_heads": 7}}),
        "blocks.1.attn has 7 heads of 8 in 16 features",
    ),
    "edits that are none": (lambda d, _: d["spec"].update(edits={}), "its spec should be name, arguments, edits, ties"),
    "a name that is none": (lambda d, _: d["spec"].update(name=["vit"]), "its spec should be name, arguments"),
    "another part": (lambda d, _: d["spec"].update(code="x"), "its spec should be name, arguments, edits, ties"),
    "tensors that are each other": (
        lambda d, t: (
            d["spec"]["ties"].update({"norm.weight": "norm.bias", "norm.bias": "norm.weight"}),
            t.pop("norm.weight"),
            t.pop("norm.bias"),
        ),
        "norm.weight can't be the same tensor as norm.bias",
    ),
    "a tie of another shape": (
        lambda d, t: (d["spec"]["ties"].update({"norm.weight": "cls_token"}), t.pop("norm.weight")),
        "norm.weight can't be the same tensor as cls_token",
    ),
    "whole numbers": (lambda _, t: t.update({"norm.weight": torch.ones(16).long()}), r"norm.weight is torch\.int64"),
    "a shape of less than nothing": (
        lambda d, _: d["packed"].update({"head.weight": [-5, -16]}),
        r"the shape of head.weight is \[-5, -16\], which is none",
    ),
    "a shape beyond all": (
        lambda d, _: d["packed"].update({"head.weight": [2**62, 2**62]}),
        "the bits of head.weight are not one for each element",
    ),
    "a shape that is none": (lambda d, _: d["packed"].update({"head.weight": "x"}), "the shape of head.weight is 'x'"),
    "a name that clears the screen": (
        lambda _, t: t.update({"\x1b[2J\n" * 500: torch.ones(1)}),
        r"\?\[2J.*\.\.\.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPEC)
def test_what_no_model_is_made_of_is_one_sentence(tmp_path, intact, case):
    change, said = SPEC[case]
    assert re.search(said, refused(crafted(tmp_path, intact, change)))


DOCUMENTS = {
    "depth": "[" * 100_000,
    "closed depth": "[" * 900 + "]" * 900,
    "no mapping": "[]",
    "no format": "{}",
    "a format that is true": '{"format": true}',
    "a format below all": '{"format": -1}',
    "a long number": '{"format": ' + "1" * 10_000 + "}",
    "no number": '{"format": NaN}',
    "half a letter": '{"format": 1, "note": "\\ud800"}',
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_a_document_that_is_none_is_one_sentence(tmp_path, case):
    path = tmp_path / "crafted.safetensors"
    path.write_bytes(safetensors_bytes({"x": torch.ones(1)}, {_KEY: DOCUMENTS[case]}))
    assert "is damaged" in refused(path)
    with pytest.raises(ValueError, match="is damaged"):
        note_of(path)


@pytest.mark.parametrize("note", [None, [], "text", 3])
@pytest.mark.parametrize("read", [load, note_of, load_model])
def test_a_note_that_is_no_mapping_is_one_sentence(tmp_path, intact, note, read):
    path = crafted(tmp_path, intact, lambda document, _: document.update(note=note))
    with pytest.raises(ValueError, match="has no 'note', or one that is no mapping"):
        read(path)
    path = crafted(tmp_path, intact, lambda document, _: document.pop("note"))
    with pytest.raises(ValueError, match="has no 'note', or one that is no mapping"):
        read(path)


@pytest.mark.parametrize("run", [None, [], "text", {}, {"method": []}, {"method": "nm8", "options": []}])
def test_a_run_that_is_none_is_one_sentence(tmp_path, intact, run):
    path = crafted(tmp_path, intact, lambda document, _: document["note"].update(run=run))
    with pytest.raises(ValueError, match=r"^The model .* is damaged \(.*\); delete it and train it again\.$") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_a_note_that_is_too_deep_is_refused_before_anything_is_written(tmp_path):
    itself: list = []
    itself.append(itself)
    for note in (nested(500), nested(100_000), itself):
        with pytest.raises(ValueError, match=r"^The note .* can't be saved; only plain values can"):
            save(vit(depth=3), tmp_path / "run.safetensors", build=(NAME, DEEP), note={"mine": note})
    assert not list(tmp_path.iterdir())


def test_only_this_thread_is_held_to_the_bound():
    def build() -> None:
        made.append(nn.Sequential(*(nn.Identity() for _ in range(10))))

    made: list[nn.Module] = []
    with parts_at_most(3):
        thread = Thread(target=build)
        thread.start()
        thread.join()
        with pytest.raises(ValueError, match="more than 3 modules and tensors"):
            build()
    build()
    assert len(made) == 2


def test_crafted_files_take_little_room(tmp_path, intact):
    paths = [intact]
    for number, (change, _) in enumerate(SPEC.values()):
        paths.append(crafted(tmp_path, intact, change).rename(tmp_path / f"{number}.safetensors"))
    (whole, *said), grown = loaded_elsewhere(*paths)
    assert not whole
    assert all(said)
    assert grown < 100_000
