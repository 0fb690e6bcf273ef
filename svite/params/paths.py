"""Where the repository is."""

import os
from pathlib import Path


def workspace(start: str | Path = ".") -> None:
    """Change to the repository's root, the nearest folder upwards with `params.yaml`, wherever Jupyter was started.

    Raises FileNotFoundError outside the repository.
    """
    here = Path(start).resolve()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file():
            os.chdir(folder)
            return
    raise FileNotFoundError(f"No params.yaml in {here} or above it; run this from inside the repository.")
