"""`python -m svite.train` is `svite train`."""

from svite.training import main

if __name__ == "__main__":  # a worker of a data loader imports this module too
    main()
