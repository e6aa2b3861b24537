"""`python -m peaks_and_gates` is `pg`."""

from .book.cli import main

main()
