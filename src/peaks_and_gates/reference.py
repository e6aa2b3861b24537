"""The reference of this package, made from its docstrings: what the site shows under *API*.

text = reference.modules_markdown(["neighbours", "geometry"])      # public functions and classes, with their sections

Read by griffe without importing anything.
"""

from __future__ import annotations

import ast
import html
import re
from textwrap import dedent

import griffe

from .store import SOURCE

TITLES = {
    "parameters": "Arguments",
    "attributes": "Attributes",
    "returns": "Returns",
    "yields": "Yields",
    "raises": "Raises",
}


def modules_markdown(names: list[str]) -> str:
    """MyST: a heading for each module and each of its public functions and classes, and below it what is said."""
    parts = []
    for name in names:
        tree = ast.parse((SOURCE / f"{name}.py").read_text())
        parts.append(f"## {name}\n\n{described(ast.get_docstring(tree) or '')}")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                parts.append(f"### {node.name}\n\n{entry(node)}")
                parts += [entry(inner, node.name) for inner in node.body if public_method(node, inner)]
    return "\n\n".join(parts)


def public_method(owner: ast.AST, node: ast.AST) -> bool:
    """Whether a node is a method of a class that a reader may call."""
    return isinstance(owner, ast.ClassDef) and isinstance(node, ast.FunctionDef) and not node.name.startswith("_")


def entry(node: ast.FunctionDef | ast.ClassDef, owner: str = "") -> str:
    """How something is called, and what is said about it.  owner: of a method, its class."""
    return f"{signature(node, owner)}{described(ast.get_docstring(node) or '')}"


def signature(node: ast.FunctionDef | ast.ClassDef, owner: str = "") -> str:
    """How it is called, as HTML; of a class that holds data, its fields."""
    if isinstance(node, ast.FunctionDef):
        decorated = {ast.unparse(each) for each in node.decorator_list} & {"property", "cached_property"}
        arguments = "" if decorated else f"({ast.unparse(node.args)})"
        returned = f" → {ast.unparse(node.returns)}" if node.returns else ""
        text = f"{owner + '.' if owner else ''}{node.name}{arguments}{returned}"
    else:
        fields = [ast.unparse(each) for each in node.body if isinstance(each, ast.AnnAssign)]
        text = f"class {node.name}" + (f"({', '.join(fields)})" if fields else "")
    return f'<pre class="pg-signature">{html.escape(text)}</pre>\n\n'


def described(docstring: str) -> str:
    """A docstring with its sections, as HTML."""
    parts = []
    for section in griffe.Docstring(docstring, parser="google").parse(warnings=False):
        kind = section.kind.value
        if kind == "text":
            parts += paragraphs(section.value)
        elif kind in TITLES:
            rows = "".join(f"<dt>{term(item)}</dt><dd>{inline(item.description)}</dd>" for item in section.value)
            parts.append(f'<p class="pg-section">{TITLES[kind]}</p><dl class="pg-arguments">{rows}</dl>')
        else:  # a line that ends in a colon, and what is indented below it
            parts.append(f"<p>{inline(section.title)}: {inline(section.value.description)}</p>")
    return "\n".join(parts)


def paragraphs(text: str) -> list[str]:
    """Paragraphs; indented ones, and lines of code, as they are."""
    found = []
    for part in re.split(r"\n\s*\n", text.strip()):
        if part.startswith((" ", "\t")) or re.match(r"[\w.,\[\] ]+ = |[\w.]+\(|with |import |from ", part):
            found.append(f"<pre>{html.escape(dedent(part))}</pre>")
        else:
            found.append(f"<p>{inline(part)}</p>")
    return found


def term(item: griffe.DocstringElement) -> str:
    """What a line of a section is about: a name, or a type."""
    named = getattr(item, "name", "")
    return f"<code>{html.escape(named)}</code>" if named else html.escape(str(item.annotation or ""))


def inline(text: str) -> str:
    """Escaped, with `code` and *stress* set as such; no blank line, which would end the block of HTML."""
    text = html.escape(" ".join(text.split()), quote=False)
    text = re.sub(r"(?<!\S)\*(\w[^*`]*)\*(?!\w)", r"<em>\1</em>", text)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
