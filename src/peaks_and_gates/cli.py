"""`python -m peaks_and_gates.cli`, as `pg` was called before it moved to `peaks_and_gates.book.cli`."""

from .book.cli import cli, main

__all__ = ["cli", "main"]

if __name__ == "__main__":
    main()
