"""The C++ compiler that `CXX` names: which one it is, and how it is called."""

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MINUTES = 15  # of a compiler at work, which takes half of one: after them it hangs


class CompileError(Exception):
    """Why there are no kernels, in one sentence."""


@dataclass(frozen=True)
class Compiler:
    """A command, with the arguments that its user gives it."""

    command: tuple[str, ...]

    @classmethod
    def named(cls) -> "Compiler":
        """What `CXX` names, else c++.

        Raises CompileError for what is no command.
        """
        named = os.environ.get("CXX", "")
        try:
            return cls(tuple(shlex.split(named)) or ("c++",))
        except ValueError as error:
            raise CompileError(f"CXX is {named!r}, which is no command ({error})") from None

    def __str__(self) -> str:
        return shlex.join(self.command)

    @cache  # noqa: B019 (a process has one)
    def identity(self) -> str:
        """What tells it from others: the command, where it lies, and the version that it says it has.

        Raises CompileError where it can't be started or hangs.
        """
        where = os.path.realpath(shutil.which(self.command[0]) or self.command[0])
        return f"{self} {where} {self._call(['--version']).stdout}"

    def compile(self, source: Path, output: str, flags: Sequence[str]) -> None:
        """Make a library.

        Raises CompileError where it can't be started, fails or hangs.
        """
        done = self._call([str(source), "-o", output, *flags])
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), None)
            reason = reason or f"exit code {done.returncode}"
            raise CompileError(f"'{self}' can't compile {source.name} ({reason.strip()})")
        if not Path(output).exists():
            raise CompileError(f"'{self}' made no library of {source.name}")

    def _call(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        command = [*self.command, *arguments]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = os.environ | {"LC_ALL": "C"}  # errors in English
        try:
            process = subprocess.Popen(
                command, **pipes, text=True, errors="replace", env=environment, start_new_session=True
            )
        except FileNotFoundError:
            raise CompileError(f"there is no compiler '{self}' (CXX names another)") from None
        except OSError as error:
            raise CompileError(f"'{self}' can't be started ({error.strerror})") from None
        with process:
            try:
                out, err = process.communicate(timeout=60 * MINUTES)
            except subprocess.TimeoutExpired:
                raise CompileError(f"'{self}' has not ended after {MINUTES} minutes") from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # and what it has started
        return subprocess.CompletedProcess(command, process.returncode, out, err)
