"""Where Jupyter gets a pipeline's kernels from: forks of the process that `svite.warm` keeps, where there is one."""

import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner

from svite.warm import ADDRESS, MESSAGE


class WarmProvisioner(LocalProvisioner):
    """Jupyter's own provisioner, but the kernel is a fork; an ordinary one where that can't be had."""

    async def launch_kernel(self, cmd: list[str], **options: Any) -> KernelConnectionInfo:
        """Start the kernel that `python ... -m MODULE ...` would start."""
        try:
            self.process = Fork(cmd[cmd.index("-m") + 1 :], options["env"], options.get("cwd") or Path.cwd())
        except (OSError, KeyError, ValueError):
            return await super().launch_kernel(cmd, **options)
        self.pid = self.pgid = self.process.pid
        return self.connection_info


class Fork:
    """The part of subprocess.Popen that Jupyter uses, for a process that is another one's child.

    Raises:
        OSError, KeyError, ValueError: there is nobody to ask for a fork, or it ended before it answered.
    """

    stdin = stdout = stderr = returncode = None

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: str | Path) -> None:
        request = {"arguments": arguments, "environment": environment, "folder": str(folder)}
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link.connect(os.environ[ADDRESS])
        socket.send_fds(self.link, [json.dumps(request).encode()], [sys.__stdout__.fileno(), sys.__stderr__.fileno()])
        self.pid: int = json.loads(self.link.recv(MESSAGE))

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.returncode is None and select.select([self.link], [], [], 0)[0]:
            return self.wait()
        return self.returncode

    def wait(self) -> int:
        """The exit code, when it has ended."""
        if self.returncode is None:
            with self.link:
                self.returncode = json.loads(self.link.recv(MESSAGE) or str(-signal.SIGKILL))
        return self.returncode

    def send_signal(self, sign: int) -> None:
        """As os.kill, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, sign)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)
