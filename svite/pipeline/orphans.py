"""No process outlives the one that started it. Every kernel imports this, and nothing else of svite."""

import ctypes
import signal
import sys


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, however that happened: no orphans."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
