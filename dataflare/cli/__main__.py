"""``python -m dataflare.cli``."""

from dataflare.cli import main

main()
