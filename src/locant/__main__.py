"""`python -m locant` is the `locant` command."""

from locant.cli import main

main()
