"""Which device a run takes: the GPU where there is one, unless its environment says otherwise."""

import os
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from tiny_runs import a_run, data, loop_of

from svite.params.device import takes_gpu, threads
from svite.train import processes


@pytest.fixture
def with_gpu(monkeypatch) -> None:
    """A machine of two GPUs, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def asked_of_accelerate(monkeypatch) -> bool:
    """Whether a run asks Accelerate for the CPU."""
    asked, on_cpu = [], Accelerator(cpu=True)
    monkeypatch.setattr(processes, "Accelerator", lambda cpu, **_: asked.append(cpu) or on_cpu)
    processes.accelerator_of_this_machine()
    return asked[0]


def test_tests_train_on_the_cpu_also_where_there_is_a_gpu(with_gpu, monkeypatch):
    assert asked_of_accelerate(monkeypatch) is True
    told = subprocess.run(
        [sys.executable, "-c", "import os; print(os.environ['SVITE_DEVICE'])"], capture_output=True, text=True
    )
    assert told.stdout == "cpu\n"


@pytest.mark.parametrize(("setting", "cpu"), [(None, False), ("", False), ("cuda", False), ("cpu", True)])
def test_a_run_takes_the_gpu_unless_it_is_told_not_to(with_gpu, monkeypatch, setting, cpu):
    monkeypatch.delenv("SVITE_DEVICE") if setting is None else monkeypatch.setenv("SVITE_DEVICE", setting)
    assert asked_of_accelerate(monkeypatch) is cpu


def test_without_a_gpu_a_run_takes_the_cpu(monkeypatch):
    monkeypatch.delenv("SVITE_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert asked_of_accelerate(monkeypatch) is True


def test_a_device_that_is_not_there_is_one_sentence(with_gpu, monkeypatch):
    monkeypatch.setenv("SVITE_DEVICE", "gpu")
    with pytest.raises(ValueError, match=r"^SVITE_DEVICE is 'gpu'; it should be cpu or cuda, or not be set\.$"):
        takes_gpu()
    monkeypatch.setenv("SVITE_DEVICE", "cuda")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"^3 processes were started where torch finds 2 GPUs; .*\.$"):
        takes_gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^SVITE_DEVICE is cuda, and torch finds no GPU here; set it to cpu\.$"):
        takes_gpu()


@pytest.mark.parametrize("said", ["many", "0", "-1", "1.5", "3000000000"])
def test_a_number_of_threads_that_is_none_is_one_sentence(monkeypatch, said):
    monkeypatch.setenv("SVITE_THREADS", said)
    with pytest.raises(
        ValueError, match=rf"^SVITE_THREADS is '{said}'; it should be a whole number from 1 to 4,096\.$"
    ):
        threads()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_gpu_loses_as_one_on_the_cpu_does(tmp_path):
    code = "import test_train_device as t, sys; t.first_losses(sys.argv[1])"
    place = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    found = {}
    for device in ("cpu", "cuda"):
        environment = os.environ | {"SVITE_DEVICE": device, "PYTHONPATH": place}
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment, check=True
        )
        at, *losses = done.stdout.split()
        assert at == device
        found[device] = [float(loss) for loss in losses]
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-3)


def first_losses(folder: str) -> None:
    """Print the device and the losses of eight steps, updates of the topology among them."""
    from pathlib import Path

    made = loop_of(a_run("set", rotate=0.0), data(Path(folder)))
    print(made.accelerator.device.type)
    made.model.train()
    for _ in range(8):
        made.advance()
        print(made.loss)
