"""Nothing that is loaded is run, and nothing outside of the data is read or written."""

import io
import json
import os
import pickle
import re
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import EpsImagePlugin, Image
from tiny_runs import MODEL, a_run, data, data_folder, files_of, loop_of

import svite
from svite.data.memory import Data
from svite.params import recipe, study
from svite.params.recipe import Distillation, Model
from svite.params.run import Training
from svite.study import results
from svite.train.checkpoint import last_good, load_checkpoint, previous

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Data:
    return data(tmp_path_factory.mktemp("images") / "data")


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def trace(tmp_path) -> Path:
    return tmp_path / "trace"


@pytest.fixture(params=["pickle", "torch", "old torch"])
def evil(request, tmp_path, trace) -> Path:
    """A file whose unpickling leaves a trace, in three formats."""
    path, state = tmp_path / "evil.pth", {"state_dict": {"head.weight": torch.zeros(2)}, "loop": Evil(trace)}
    if request.param == "pickle":
        path.write_bytes(pickle.dumps(state, protocol=2))  # torch's own
    else:
        torch.save(state, path, _use_new_zipfile_serialization=request.param == "torch")
    return path


def test_the_file_that_the_tests_below_load_does_harm_where_it_is_unpickled(evil, trace):
    with suppress(RuntimeError):  # a plain pickle is no file of torch's; that it learns too late
        torch.load(evil, weights_only=False)
    assert trace.exists()


def harmless(load: Callable[[], object], trace: Path, kind: type[Exception] = ValueError) -> str:
    """The sentence in which a file is refused; it left no trace."""
    with pytest.raises(kind) as caught:
        load()
    assert not trace.exists()
    return str(caught.value)


def test_checkpoints_are_not_unpickled(evil, trace, images):
    run = a_run("svite")
    for load in (load_checkpoint, last_good, loop_of(run, images).fit):
        assert "is damaged" in harmless(lambda load=load: load(evil), trace)
    evil.rename(previous(evil))
    assert "is damaged" in harmless(lambda: last_good(evil), trace)


def test_saved_models_are_not_unpickled(evil, trace, images, tmp_path):
    assert "no safetensors file" in harmless(lambda: svite.load(evil), trace)
    metrics = tmp_path.parent / "metrics" / "train" / "evil.json"
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps({"images_seen": 1}))
    start = lambda: results.train(a_run("omp"), images, tmp_path / "out", evil)
    assert "no safetensors file" in harmless(start, trace)
    teacher = a_run("dense", distillation=Distillation(teacher=str(evil)))
    assert "no safetensors file" in harmless(lambda: loop_of(teacher, images), trace)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images_seen": "many"}', '{"images_seen": [1]}', "[" * 100_000])
def test_metrics_that_say_nothing_are_one_sentence(tmp_path, content):
    metrics = tmp_path / "metrics" / "train" / "run.json"
    metrics.parent.mkdir(parents=True)
    metrics.write_text(content)
    start = tmp_path / "models" / "run.safetensors"
    start.parent.mkdir()
    start.touch()
    said = harmless(lambda: results.images_before(start), tmp_path / "trace")
    assert said.startswith(f"{metrics} does not say what the training of {start} cost (")


def test_pretrained_weights_are_not_unpickled(evil, trace, images, tmp_path):
    overlay = {"file": str(evil), "num_classes": 3}
    model = Model(**{**MODEL.model_dump(), "pretrained": True, "pretrained_cfg_overlay": overlay})
    run = a_run("dense").model_copy(update={"model": model})
    said = harmless(lambda: results.train(run, images, tmp_path / "out"), trace)
    assert "timm can't build 'vit_tiny_patch16_224'" in said
    assert "weights_only" in said
    named = a_run("dense").model_copy(update={"model": MODEL.model_copy(update={"checkpoint_path": str(evil)})})
    assert "weights_only" in harmless(lambda: results.train(named, images, tmp_path / "out"), trace)
    assert not (tmp_path / "out").exists()


# Images


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (12, 12), 90).save(buffer, "PNG")
    return buffer.getvalue()


def members(outside: Path) -> list[tarfile.TarInfo]:
    """Names and links that lead out of a tar file."""
    found = []
    for name in ("../up.png", "0/../../up.png", str(outside / "absolute.png"), "0/good.png", "1/good.png"):
        found.append(tarfile.TarInfo(name))
        found[-1].size = len(png())
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        link = tarfile.TarInfo(f"1/link{kind.decode()}.png")
        link.type, link.linkname = kind, str(outside / "secret.png")
        found.append(link)
    return found


def test_names_and_links_in_a_tar_file_lead_nowhere(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("L", (12, 12), 255).save(outside / "secret.png")
    folder = tmp_path / "deep" / "data"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        with tarfile.open(folder / f"{split}.tar", "w") as tar:
            for member in members(outside):
                tar.addfile(member, io.BytesIO(png()) if member.isreg() else None)
    before = files_of(tmp_path)
    split = Data(folder, size=12).train
    assert len(split) == 5
    assert set(split.images.unique().tolist()) == {90}  # the secret is white
    assert files_of(tmp_path) == before


def test_postscript_that_is_called_an_image_is_not_run(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **named: started.append(given))
    for label in "01":
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "a.png").write_text(
            "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n%%EndComments\n"
        )
    with Image.open(tmp_path / "train" / "0" / "a.png") as image:
        assert image.format == "EPS"
    with pytest.raises(ValueError, match=r"a\.png can't be read as an image \(cannot identify"):
        Data(tmp_path, size=12).train  # noqa: B018
    assert not started


def test_what_lies_beside_the_images_is_not_unpickled(tmp_path):
    folder = data_folder(tmp_path / "data")
    pickled = folder / "_data_tarinfos.pickle"  # where timm's reader keeps what it found in large tar files
    pickled.write_bytes(pickle.dumps(Evil(tmp_path / "trace")))
    assert len(Data(folder, size=12).train) == 42
    assert not (tmp_path / "trace").exists()


# Parameter files


TAGS = (
    "!!python/object/apply:os.mkdir [{trace}]",
    "!!python/object/new:os.mkdir [{trace}]",
    "!!python/name:os.system",
    "!!python/module:this",
)
BOMB = "\n".join(["a0: &a0 [lol, lol]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 40)])
READERS = (lambda path: recipe.read(path, Training), study.load)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("tag", TAGS)
def test_tags_in_a_parameter_file_make_nothing(tag, read, trace, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(f"method: {tag.format(trace=trace)}\n")
    said = harmless(lambda: read(path), trace)
    assert said.startswith(f"{path} is not valid YAML")
    assert "\n" not in said


def test_tags_in_what_the_command_line_sets_make_nothing(trace, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("seed: 1\n")
    change = f"seed=!!python/object/apply:os.mkdir [{trace}]"
    assert "is not valid YAML" in harmless(lambda: recipe.read(path, Training, [change]), trace)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "where", ["{bomb}", "data: nowhere\nmodel:\n  name: [*a39]\n", "recipe: *a39\n", "model: *a39\n"]
)
def test_lists_of_lists_of_lists_end_in_a_short_sentence(where, read, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(f"{BOMB}\n{where}")
    said = harmless(lambda: read(path), tmp_path / "trace")
    assert len(said) < 1000
    assert said.endswith(".")


# The code itself


UNSAFE = re.compile(
    r"torch\.load\((?!.*weights_only=True)|\bpickle\.(loads?|Unpickler)\(|\bjoblib\.load\(|allow_pickle=True"
    r"|(import|from) yaml\b|typ=.unsafe|trust_remote_code=True|shell=True|os\.system\(|(?<![\w.])(eval|exec)\("
)
SEARCHED = ("svite", "benchmarks", "docs", "notebooks", "recipes", "README.md", "CONTRIBUTING.md")


def test_the_search_below_finds_what_it_looks_for():
    found = ("torch.load(path)", "torch.load(f, weights_only=False)", "pickle.load(f)", "import yaml", " eval(text)")
    found += ("YAML(typ='unsafe')", "subprocess.run(line, shell=True)", "exec(text)", "from yaml import load")
    passed = ("torch.load(p, weights_only=True)", "model.eval()", "YAML(typ='safe')", "create_subprocess_exec(a)")
    assert all(map(UNSAFE.search, found))
    assert not any(map(UNSAFE.search, passed))


def test_no_code_unpickles_evaluates_or_starts_a_shell():
    roots = [ROOT / name for name in SEARCHED]
    files = [path for root in roots for path in ([root] if root.is_file() else root.rglob("*")) if path.is_file()]
    texts = [path for path in files if path.suffix in {".py", ".ipynb", ".md", ".yaml", ".sh"}]
    assert len(texts) > 100
    lines = [(path, line) for path in texts for line in path.read_text().splitlines()]
    assert [f"{path}: {line}" for path, line in lines if UNSAFE.search(line)] == []
