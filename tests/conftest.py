"""What all tests share: one thread, the CPU even where there is a GPU, and annotations checked at every call."""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "SVITE_DEVICE": "cpu"}  # which the processes that they start inherit

from jaxtyping import install_import_hook

install_import_hook("svite", "typechecker.check")  # before anything of svite is imported

import svite  # noqa: E402, F401  (before timm)
