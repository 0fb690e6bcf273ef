"""One training run: data, loop, checkpoints, results."""
