"""`python -m descant_cli` is `descant`."""

from descant_cli.main import main

main()
