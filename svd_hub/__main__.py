"""`python -m svd_hub` is `svd-hub`."""

from .cli import main

main()
