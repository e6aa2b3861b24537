"""What the reference adds to Sphinx: reStructuredText made of the book's docstrings, which are plain text."""

from __future__ import annotations

import ast
import re
from importlib.metadata import version
from typing import Any

from sphinx.application import Sphinx


def is_code(paragraph: str) -> bool:
    """Whether it is indented, or Python at the margin: an example that ends its docstring."""
    try:
        ast.parse(paragraph)
    except SyntaxError:
        return paragraph.startswith(" ")
    return True


def plain_docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Make reStructuredText of a docstring: see `is_code`; other indented lines go on with the line before them."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        if paragraph.strip() and is_code(paragraph):
            paragraph = "::\n\n" + re.sub("^(?=.)", " ", paragraph, flags=re.MULTILINE)
        else:
            paragraph = re.sub(r"\*\*|\||(?<=\w)_(?!\w)", r"\\\g<0>", paragraph)
            if not re.match(r"(Args|Attributes|Returns|Raises|Yields):\n", paragraph):
                paragraph = re.sub(r"\n +", "\n", paragraph)
        paragraphs.append(paragraph)
    lines[:] = [*"\n\n".join(paragraphs).splitlines(), ""]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register it with Sphinx."""
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)  # before napoleon's
    return {"version": version("peaks-and-gates"), "parallel_read_safe": True, "parallel_write_safe": True}
