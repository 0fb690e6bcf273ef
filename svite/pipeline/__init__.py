"""The commands, and what `dvc.yaml` runs: notebooks as stages, several at a time."""
