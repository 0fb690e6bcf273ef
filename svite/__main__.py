"""`python -m svite` is `svite`."""

from svite.pipeline.cli import main

if __name__ == "__main__":  # a worker of a data loader imports this module too
    main()
