"""recipes/slurm.sh with stand-ins for Slurm's commands: what it launches, and what it does when it is asked to end."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "recipes/slurm.sh"
SETTINGS = {
    **{"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "node[1-4]", "SLURM_NNODES": "4"},
    **{"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "96"},
}
SCONTROL = 'if [ "$1" = show ]; then printf "node1\\nnode2\\n"; else echo "$*"; fi'
SAVES = "trap 'echo saved; exit 143' TERM; echo running; while :; do sleep 0.05; done"

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")


@pytest.fixture
def start(tmp_path):
    """Starts the script where `srun` does what it is given."""

    def start(srun: str, *arguments: str) -> subprocess.Popen:
        for name, text in {"srun": srun, "scontrol": SCONTROL}.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
            (tmp_path / name).chmod(0o755)
        env = os.environ | SETTINGS | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        pipes = {"stdout": subprocess.PIPE, "text": True, "cwd": tmp_path}
        return subprocess.Popen(["bash", str(SCRIPT), *arguments], env=env, **pipes)

    return start


def test_bash_and_shellcheck_accept_it():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SCRIPT], check=True)


def test_every_node_meets_at_the_first(start):
    out, _ = start('echo "$*"', "recipes/mine.yaml").communicate(timeout=30)
    assert out.startswith("--cpus-per-task=96 ")
    assert "--nnodes=4 --nproc-per-node=8 " in out
    assert "--rdzv-endpoint=node1:24567 " in out
    assert out.endswith("-m svite train --params recipes/mine.yaml --output runs/mine\n")


def test_its_options_are_those_of_the_command_and_of_torchrun(start):
    from torch.distributed.run import get_args_parser

    from svite.pipeline.training import parser

    out, _ = start('echo "$*"', "p.yaml", "there", "--set", "recipe.epochs=300").communicate(timeout=30)
    words = out.split()
    launch = get_args_parser().parse_args(words[words.index("torchrun") + 1 :])
    assert (launch.training_script, launch.nnodes, launch.max_restarts) == ("svite", "4", 2)
    command, *arguments = launch.training_script_args
    options = parser().parse_args(arguments)
    assert command == "train"
    assert (options.params, options.output, options.set) == ("p.yaml", "there", ["recipe.epochs=300"])


def test_asked_to_end_it_lets_the_run_save_and_queues_it_again(start):
    with start(SAVES) as process:
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert out.split("\n")[:2] == ["saved", "requeue 1234567"]
    assert process.returncode == 143


@pytest.mark.parametrize("code", [0, 1])
def test_a_run_that_ends_by_itself_is_not_queued_again(start, code):
    process = start(f"exit {code}")
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")


def test_the_time_to_save_is_less_than_slurm_gives():
    text = SCRIPT.read_text()
    (warning,) = re.findall(r"--signal=B:TERM@(\d+)", text)
    (saving,) = re.findall(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", text)
    assert int(saving) < int(warning)
