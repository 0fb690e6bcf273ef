"""The C++ kernels: compiled at first use, kept for the next process.

The compiler writes beside the cache and a rename puts the library in place: any number of processes may compile at
once, and one that is killed leaves nothing that another would wait for or load.
"""

import atexit
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from svite.store.files import sha256

SOURCE = Path(__file__).with_name("kernels.cpp")
# ATen's parallel_for is a plain loop in what is compiled without OpenMP; with it, threads are torch's own.
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fvisibility=hidden")
LINKED = ("-ltorch", "-ltorch_cpu", "-lc10")
_one_at_a_time = threading.Lock()


class CompileError(Exception):
    """Why there are no kernels, in one sentence."""


def kernels_are_there() -> bool:
    """Whether the kernels can be used, compiled now if need be; one warning says why not.

    They are `torch.ops.svite`. `CXX` names the compiler (default: c++), `SVITE_CACHE` the folder that keeps what it
    made (default: svite in the user's cache).
    """
    with _one_at_a_time:
        return _load()


@cache
def _load() -> bool:
    try:
        for folder in _folders():
            library = _kept(folder) or _compile(folder)
            if library is not None:
                torch.ops.load_library(str(library))
                return True
        raise CompileError("there is no folder to write to")
    except (CompileError, OSError) as error:
        warnings.warn(f"Sparse layers run as dense ones, for the sparse kernels can't be used: {error}.", stacklevel=4)
        return False


def _folders() -> Iterator[Path]:
    """Where a library may be kept; a folder of this process alone where the user's cache can't be written."""
    with suppress(RuntimeError):  # from a user without a home
        cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        yield Path(os.environ.get("SVITE_CACHE") or Path(cache_home) / "svite")
    own = tempfile.mkdtemp(prefix="svite-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    yield Path(own)


def _identity() -> str:
    """What the library is a function of: source, flags, torch and the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    processor = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    parts = [SOURCE.read_text(), *FLAGS, torch.__version__, platform.platform(), *processor]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _kept(folder: Path) -> Path | None:
    """The library that an earlier process left; its name ends in its checksum. A damaged one waits to be replaced."""
    for library in folder.glob(f"kernels-{_identity()}-*.so"):
        with suppress(OSError):
            if library.stem.endswith(sha256(library)[:16]):
                return library
    return None


def _compile(folder: Path) -> Path | None:
    """Make the library; None where its folder can't be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(dir=folder, suffix=".part")
    except OSError:
        return None
    os.close(handle)
    try:
        _call_compiler(made)
        library = folder / f"kernels-{_identity()}-{sha256(made)[:16]}.so"
        os.replace(made, library)
    finally:
        Path(made).unlink(missing_ok=True)
    return library


def _call_compiler(output: str) -> None:
    compiler, root = os.environ.get("CXX", "c++"), Path(torch.__file__).parent
    command = [*shlex.split(compiler), *FLAGS, str(SOURCE), "-o", output, f"-L{root / 'lib'}", *LINKED]
    command += [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise CompileError(f"there is no compiler '{compiler}' (CXX names another)") from None
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
        raise CompileError(f"'{compiler}' can't compile {SOURCE.name} ({reason.strip()})")
