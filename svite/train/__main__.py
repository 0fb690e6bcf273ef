"""`python -m svite.train` is what `python -m svite train` was called before."""

from svite.pipeline.training import main

if __name__ == "__main__":  # a worker of a data loader imports this module too
    main()
