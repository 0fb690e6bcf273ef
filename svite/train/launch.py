"""Training in processes of its own, started from one: a notebook, or a command line."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from svite.params.run import Training

OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # with torchrun's own, gloo hangs after a restart (torch 2.13)


def launch(training: Training, folder: str | Path, processes: int, shard: bool = False) -> None:
    """Train in so many processes on this machine, through torchrun; what they say is printed as they say it.

    The results lie below `folder`, as those of `svite train`. The same call goes on where an earlier one was stopped.

    Raises RuntimeError, with what the processes said of it, where the training fails.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "svite", "train", "--output", str(folder), *(["--shard"] if shard else [])]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as params, tempfile.TemporaryFile("w+") as errors:
        params.write(training.model_dump_json())
        params.flush()
        command += ["--params", params.name]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | OWN_STORE
        ) as running:
            _print_until_it_ends(running)
        if running.returncode:
            errors.seek(0)
            said = errors.read().splitlines()
            ours = [line.removeprefix("svite: ") for line in said if line.startswith("svite: ")]
            raise RuntimeError("\n".join(dict.fromkeys(ours or said[-20:])))  # processes often say the same


def _print_until_it_ends(running: subprocess.Popen[str]) -> None:
    try:
        _print_all(running.stdout)
    except BaseException:
        running.terminate()  # torchrun passes it on, and each process saves where it is
        _print_all(running.stdout)
        raise
    finally:
        running.wait()


def _print_all(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, end="", flush=True)
