"""What all tests share: one thread, and the shapes and types of svite's annotations checked at every call."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from jaxtyping import install_import_hook

install_import_hook("svite", "typechecker.check")  # before anything of svite is imported

import svite  # noqa: E402, F401  (before timm)
