"""`python -m svite` is `svite`."""

from svite.cli import main

main()
