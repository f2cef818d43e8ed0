"""`python -m distroml.cli` is `distroml`: for jobs, whose commands are scripts or modules."""

from distroml.cli.main import main

main()
