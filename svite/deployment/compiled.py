"""The C++ kernels: compiled at first use, kept for the next process.

The compiler writes beside the cache and a rename puts the library in place: any number of processes may compile at
once, and one that is killed leaves nothing that another would wait for or load. A library is loaded from a folder that
nobody else can write to, or not at all.
"""

import hashlib
import os
import platform
import struct
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from svite.deployment.compiler import CompileError, Compiler
from svite.deployment.private import intrusion
from svite.deployment.swept import folder_of_this_process, sweep
from svite.io.files import sha256

SOURCE = Path(__file__).with_name("kernels.cpp")
# ATen's parallel_for is a plain loop in what is compiled without OpenMP; with it, threads are torch's own.
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fvisibility=hidden")
LINKED = ("-ltorch", "-ltorch_cpu", "-lc10")
_one_at_a_time = threading.Lock()


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
        compiler = Compiler.named()
        if not any(_loaded_from(folder, compiler) for folder in _folders()):
            raise CompileError("there is no folder to write to that is yours alone")
        return True
    except (CompileError, OSError) as error:
        warnings.warn(f"Sparse layers run as dense ones, for the sparse kernels can't be used: {error}.", stacklevel=4)
        return False


def _folders() -> Iterator[Path]:
    """Where a library may be kept; a folder of this process alone where the user's cache can't be used."""
    with suppress(RuntimeError):  # from a user without a home
        cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        yield Path(os.environ.get("SVITE_CACHE") or Path(cache_home) / "svite")
    yield folder_of_this_process()


def _loaded_from(folder: Path, compiler: Compiler) -> bool:
    """Load the library that is kept in the folder, or else compile it there; False where the folder is of no use.

    Raises CompileError where what was compiled just now can't be loaded.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = folder.resolve(strict=True)
        reason = intrusion(folder)
    except OSError:
        return False
    if reason:
        told = f"Kernels are not kept in {folder}, for {reason}; let SVITE_CACHE name a folder that is yours alone."
        warnings.warn(told, stacklevel=5)
        return False
    kept = _kept(folder, compiler)
    return (kept is not None and _refusal(kept) is None) or _compiled(folder, compiler)


def _compiled(folder: Path, compiler: Compiler) -> bool:
    try:
        handle, made = tempfile.mkstemp(dir=folder, suffix=".part")
    except OSError:
        return False
    os.close(handle)
    sweep(folder)
    try:
        compiler.compile(SOURCE, made, (*FLAGS, *_of_torch()))
        os.chmod(made, 0o700)
        library = folder / f"kernels-{_identity(compiler)}-{sha256(made)[:16]}.so"
        os.replace(made, library)
    finally:
        Path(made).unlink(missing_ok=True)
    if refusal := _refusal(library):
        raise CompileError(f"'{compiler}' made a library that can't be loaded ({refusal})")
    return True


def _identity(compiler: Compiler) -> str:
    """What the library is a function of: source, compiler, flags, torch and the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    processor = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    parts = [SOURCE.read_text(), compiler.identity(), *FLAGS, *_of_torch(), torch.__version__, platform.platform()]
    return hashlib.sha256("\n".join([*parts, *processor]).encode()).hexdigest()[:16]


def _of_torch() -> list[str]:
    root = Path(torch.__file__).parent
    found = [f"-L{root / 'lib'}", *LINKED, f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    return [*found, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]


def _kept(folder: Path, compiler: Compiler) -> Path | None:
    """The library that an earlier process left, which nobody else can have changed; its name ends in its checksum.

    A damaged one waits to be replaced.
    """
    for library in folder.glob(f"kernels-{_identity(compiler)}-*.so"):
        with suppress(OSError):
            if intrusion(library) is None and library.stem.endswith(sha256(library)[:16]):
                return library
    return None


def _refusal(library: Path) -> str | None:
    """Load it. Why that can't be done, if so; it is removed then, and the next process compiles another."""
    try:
        _refuse_half(library)
        torch.ops.load_library(str(library))
        torch.ops.svite.csr  # noqa: B018 (any library may load)
    except (OSError, AttributeError) as error:
        library.unlink(missing_ok=True)
        return str(error).splitlines()[0]
    return None


def _refuse_half(library: Path) -> None:
    """OSError for an ELF file that is cut short, for mapping what is not there ends the process.

    The table of its sections comes last.
    """
    with library.open("rb") as file:
        header = file.read(64)
    if header.startswith(b"\x7fELF") and len(header) == 64:
        (table,), (size, count) = struct.unpack_from("=Q", header, 40), struct.unpack_from("=HH", header, 58)
        if table + size * count > library.stat().st_size:
            raise OSError("it is cut short")
