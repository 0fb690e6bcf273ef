"""Kernels that are forks of one warm process: the same bytes, sooner, and none is left behind."""

import os
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import psutil
import pytest
from tiny_notebooks import ROOT, executed, make, run, save, start, text

from svite.pipeline import provisioner, warm
from svite.pipeline.provisioner import Fork, server_of

pytestmark = pytest.mark.xdist_group("warm")
SLEEP = "print('epoch on', flush=True)\nimport time; time.sleep(600)"


@pytest.fixture
def place(tmp_path, monkeypatch):
    return make(tmp_path, monkeypatch)


def server() -> psutil.Process:
    return next(child for child in psutil.Process().children() if os.environ[warm.ADDRESS] in child.cmdline())


def test_outside_the_block_nothing_is_left():
    before = set(psutil.Process().children(recursive=True))  # of other tests: who loads images forks from a server
    environment = dict(os.environ)
    with warm.kernels():
        folder = Path(os.environ[warm.ADDRESS]).parent
        assert folder.exists()
        assert server().is_running()
        outer = dict(os.environ)
        with warm.kernels():
            assert os.environ[warm.ADDRESS] != outer[warm.ADDRESS]
        assert dict(os.environ) == outer
    assert set(psutil.Process().children(recursive=True)) <= before
    assert not folder.exists()
    assert dict(os.environ) == environment


def test_when_the_server_is_gone_its_kernels_go_and_the_next_is_an_ordinary_one(place):
    with warm.kernels():
        save("a", SLEEP)
        process = start("a")
        assert process.stdout.readline() == "epoch on\n"
        family = server().children(recursive=True)
        server().kill()
        assert process.wait(120) == 1
        assert "The kernel of a was killed" in process.communicate()[1]
        assert psutil.wait_procs(family, timeout=60)[1] == []
        save("a", "import sys; print('torch' in sys.modules)")
        Path(".nb/a.ipynb").unlink()
        assert run("a")[0] == 0
        assert text("a") == "False\n"


def test_another_users_warm_process_is_told_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv(warm.ADDRESS, str(tmp_path / "warm"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(str(tmp_path / "warm"))
        door.listen()
        monkeypatch.setattr(provisioner, "server_of", lambda link: server_of(link) + 1)
        with pytest.raises(PermissionError, match="another user's"):
            Fork(["this"], {"SECRET": "1"}, tmp_path)
        asker, _ = door.accept()
        with asker:
            assert asker.recv(warm.MESSAGE) == b""


@pytest.fixture(scope="module")
def kernels():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # as the tests' place has it, whatever is on it here
        with warm.kernels():
            yield


@pytest.fixture
def warm_place(place, kernels):
    return place


def test_torch_and_timm_are_there_and_the_projects_own_code_is_not(warm_place):
    save("a", "import sys\nprint([name in sys.modules for name in ('torch', 'timm', 'svite.params.study')])")
    assert run("a")[0] == 0
    assert text("a") == "[True, True, False]\n"


def test_what_a_training_needs_is_there_already(warm_place):
    code = "import sys\nbefore = set(sys.modules)\nfrom svite.study import results\nfrom svite.report import figures\n"
    save(
        "a",
        code + "print(sorted({n.split('.')[0] for n in sys.modules.keys() - before} & {'torch', 'timm', 'pandas'}))",
    )
    assert run("a")[0] == 0
    assert text("a") == "[]\n"


def test_warm_or_not_an_executed_notebook_has_the_same_bytes(warm_place, monkeypatch):
    settings = "sorted(i for i in os.environ.items() if i[0][:3] in ('OMP', 'PYT', 'MAT'))"
    draw = "import pandas as pd\npd.DataFrame({'a': [1, 3, 2]}).plot();"
    random = "import torch\ntorch.manual_seed(0)\ntorch.rand(3), hash('svite'), torch.get_num_threads()"
    wide = "pd.DataFrame({f'a long name of column {i}': [i / 3] for i in range(12)})"
    save("a", f"import os, sys\nprint(folder, os.getcwd(), sys.path, sys.argv[0], {settings})", draw, wide, random)
    assert run("a")[0] == 0
    forked = executed("a")
    monkeypatch.delenv(warm.ADDRESS)
    assert run("a")[0] == 0
    assert executed("a") == forked


def test_what_nobody_seeds_differs_from_kernel_to_kernel(warm_place):
    save("a", "import numpy, random, torch\nprint(torch.rand(1).item(), numpy.random.rand(), random.random())")
    assert run("a")[0] == 0
    first = set(text("a").split())
    assert run("a")[0] == 0
    assert not first & set(text("a").split())


def test_what_a_kernel_prints_below_python_reaches_the_runners_streams(warm_place):
    save("a", "import os; os.system('echo out; echo err >&2');")
    _, out, err = run("a")
    assert (out, err) == ("out\n", "err\n")


def test_a_kernel_that_is_killed_says_so(warm_place):
    save("a", "import os; os.kill(os.getpid(), 9)")
    code, _, err = run("a")
    assert code == 1
    assert "The kernel of a was killed, most likely for lack of memory" in err


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_kernel_outlives_its_runner(warm_place, sign):
    save("a", SLEEP)
    process = start("a", start_new_session=True)
    assert process.stdout.readline() == "epoch on\n"
    family = server().children(recursive=True)
    assert len(family) == 2
    process.send_signal(sign)
    process.communicate(timeout=120)
    assert psutil.wait_procs(family, timeout=60)[1] == []


def test_a_fork_behaves_as_a_process_does(warm_place):
    ended = Fork(["this"], dict(os.environ), warm_place)
    assert (ended.wait(), ended.poll()) == (0, 0)
    ended.terminate()  # as of a Popen, in vain
    running = Fork(["timeit", "-n1", "-r1", "import time; time.sleep(600)"], dict(os.environ), warm_place)
    assert running.poll() is None
    running.terminate()
    assert (running.wait(), running.poll()) == (-signal.SIGTERM, -signal.SIGTERM)


WITHOUT = "from svite.pipeline import notebooks, warm\nwith warm.kernels(): notebooks.run('a', None, [])"


def test_where_svite_is_not_installed_kernels_are_ordinary_ones_and_it_is_told(place):
    """A Python that finds every package of this one, and of svite the source only, as on PYTHONPATH=."""
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith(("svite", "__editable__")) and package.suffix != ".pth":
            Path("packages").mkdir(exist_ok=True)
            Path("packages", package.name).symlink_to(package)
    save("a", "print(6 * 7)")
    warmth = (warm.ADDRESS, "JUPYTER_DEFAULT_PROVISIONER_NAME")  # which the fixture of the tests above may have left on
    environment = {name: value for name, value in os.environ.items() if name not in warmth}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path("packages").absolute())])}
    command = [sys.executable, "-S", "-c", WITHOUT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("svite is not installed here, so each kernel starts anew ")
    assert text("a") == "42\n"
