"""Where the repository is, and the study in it."""

import os
from pathlib import Path


def workspace(start: str | Path = ".") -> None:
    """Change to the study's folder, the nearest one upwards with `params.yaml`, wherever Jupyter was started.

    Raises FileNotFoundError outside the repository.
    """
    here = Path(start).resolve()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file():
            os.chdir(folder)
            return
    raise FileNotFoundError(f"No params.yaml in {here} or above it; run this from inside the repository.")


def repository(start: str | Path = ".") -> Path:
    """The repository's root, the nearest folder upwards with `.dvc`, as a path relative to `start`: `.` or `../..`.

    A study is the root itself, or a folder below `studies/`. Outside any repository it is where one stands.
    """
    here = Path(start).resolve()
    root = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)
    return Path(os.path.relpath(root, here))
