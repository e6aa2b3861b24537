"""The machine: runs the pages, judges the claims, knows what is done."""
