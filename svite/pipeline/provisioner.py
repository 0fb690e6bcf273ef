"""Where Jupyter gets a pipeline's kernels from: forks of the process that `warm` keeps, where there is one."""

import json
import os
import select
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner

from svite.pipeline.warm import ADDRESS, MESSAGE


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


def server_of(link: socket.socket) -> int:
    """The user whose process listens at the other end (Linux)."""
    _, user, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return user


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
        if server_of(self.link) != os.geteuid():  # it would get the whole environment
            self.link.close()
            raise PermissionError("the warm process is another user's")
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
