"""Warm kernels: one process imports what every notebook imports, and the kernels of a pipeline are forks of it.

A kernel of its own spends four seconds on importing torch and timm, as long as two epochs of the study take. The
project's own code is imported after the fork: an edit counts at once.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import entry_points
from typing import NoReturn

from svite.pipeline.notebooks import environment
from svite.pipeline.orphans import die_with_parent

ADDRESS = "SVITE_WARM"  # the environment variable that tells a stage where to ask for a kernel
PROVISIONER = "svite-warm"  # as pyproject.toml registers it
MESSAGE = 2**20  # bytes, at most
IMPORTED = (
    *("accelerate", "IPython", "ipykernel.ipkernel", "matplotlib.pyplot", "pandas", "pydantic"),
    *("timm.data", "timm.optim", "timm.scheduler", "timm.task.distillation"),
    *("torch.nn.utils.prune", "torch.utils.flop_counter"),
)


@contextmanager
def kernels() -> Iterator[None]:
    """Inside, the kernels of the stages' notebooks start warm, where the system can do it (Linux) and Jupyter finds
    svite: a package that is on PYTHONPATH only has told it nothing."""
    found = bool(entry_points(group="jupyter_client.kernel_provisioners", name=PROVISIONER))
    if not found:
        print("svite is not installed here, so each kernel starts anew (seconds); `pip install -e .` mends it.")
    if not found or not hasattr(os, "pidfd_open"):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="svite-") as folder:  # the path of a socket has 107 characters at most
        address = f"{folder}/warm"
        server = subprocess.Popen(
            [sys.executable, "-m", "svite.pipeline.warm", address],
            env=os.environ | environment() | SPAWNED,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        ours = {ADDRESS: address, "JUPYTER_DEFAULT_PROVISIONER_NAME": PROVISIONER}
        before = {name: os.environ.pop(name, None) for name in ours}  # a block may lie in another
        os.environ |= ours
        try:
            yield
        finally:
            for name, value in before.items():
                del os.environ[name]
                os.environ |= {} if value is None else {name: value}
            server.kill()
            server.wait()


SPAWNED = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # matplotlib reads it at import, a kernel sets it later
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # any other look for a GPU spoils it for forks
}


def serve(address: str) -> None:
    """Give each connection a keeper, for ever."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(address)
        door.listen()
        select.select([door], [], [])  # a pipeline without kernels imports nothing
        for name in IMPORTED:
            import_module(name)
        gc.freeze()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers leave no zombies
        while True:
            asker, _ = door.accept()
            if not os.fork():
                door.close()
                keep(asker)
            asker.close()


def keep(asker: socket.socket) -> NoReturn:
    """Fork the kernel; end it when the asker is gone, tell the asker when it has ended."""
    die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, streams, *_ = socket.recv_fds(asker, MESSAGE, 2)
    if not (kernel := os.fork()):
        asker.close()
        become(**json.loads(request), streams=streams)
    asker.send(json.dumps(kernel).encode())
    if asker in select.select([asker, os.pidfd_open(kernel)], [], [])[0]:
        os.kill(kernel, signal.SIGKILL)
    _, status = os.waitpid(kernel, 0)
    with suppress(OSError):
        asker.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def become(arguments: list[str], environment: dict[str, str], folder: str, streams: list[int]) -> NoReturn:
    """Be what `python -m ARGUMENTS` would be in this folder, with this environment, stdout and stderr."""
    import numpy
    import pandas
    import torch

    os.setsid()
    for standard, stream in enumerate(streams, start=1):
        os.dup2(stream, standard)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment | {"JPY_PARENT_PID": str(os.getppid())})  # else the kernel takes itself for a guest
    for name in [name for name in sys.modules if name.split(".")[0] == "svite" and name != "svite.vit._torchvision"]:
        del sys.modules[name]
    sys.argv, sys.path[0] = arguments, folder
    pandas.set_option("display.max_columns", 20)  # as pandas has it when a kernel imports it; else tables wrap
    torch.seed()  # what nobody seeds differs from kernel to kernel
    numpy.random.seed()  # noqa: NPY002 (the global one is what forks share)
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    die_with_parent()
    serve(sys.argv[1])
