"""The code of a page that computes, without running the page."""

import ast

import nbformat

from peaks_and_gates.cache import project_folder

DRAWS = {"parameters", "install", "figure", "hide-input"}


def page_code(name, **constants):
    """A page's functions, and its tables in capitals, as a namespace.

    name: such as "gate/patching".  constants: parameters that the tables in capitals are made of.
    """
    notebook = nbformat.read(project_folder() / "notebooks" / f"{name}.ipynb", 4)
    cells = [
        cell for cell in notebook.cells if cell.cell_type == "code" and not DRAWS & set(cell.metadata.get("tags", []))
    ]
    tree = ast.parse("\n".join(cell.source for cell in cells))
    is_table = lambda node: isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper()
    keep = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    tree.body = [node for node in tree.body if isinstance(node, keep) or is_table(node)]
    namespace = dict(constants)
    exec(compile(tree, name, "exec"), namespace)
    return namespace
