"""What all tests share: one thread, the CPU even where there is a GPU, closed seeds, and annotations checked."""

import os
import random

# Which the processes that they start inherit. With another number of threads the suite holds too.
os.environ |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "SVITE_DEVICE": "cpu"}

from jaxtyping import install_import_hook

install_import_hook("svite", "typechecker.check")  # before anything of svite is imported

import svite  # noqa: E402, F401  (before timm)

# isort: split
import numpy as np  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("svite", derandomize=True)
settings.load_profile("svite")


def pytest_runtest_setup() -> None:
    """No test depends on what others drew before it, nor on the clock."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (others' code draws from it)
    torch.manual_seed(0)
