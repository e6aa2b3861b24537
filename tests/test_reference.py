"""The reference that is made from docstrings: complete, escaped, and of modules that exist."""

import ast
import re

from conftest import ROOT
from peaks_and_gates import reference, store
from peaks_and_gates.freshness import modules

PAGES = sorted((ROOT / "book" / "api").glob("*.md"))
LISTED = [name for page in PAGES for name in re.search(r"<!-- api: (.+?) -->", page.read_text())[1].split()]


def test_modules_are_listed_once_and_exist():
    assert len(PAGES) == 3 and len(set(LISTED)) == len(LISTED) > 40
    assert set(LISTED) <= modules()


def test_every_public_function_is_there_with_its_arguments():
    for name in LISTED:
        text = reference.modules_markdown([name])
        for node in ast.parse((store.SOURCE / f"{name}.py").read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert f"\n### {node.name}\n" in text, (name, node.name)
        assert "\n## " not in text[3:] and not re.search(r"<(?!/?(p|pre|dl|dt|dd|code|em)\b)", text), name


def test_sections_of_a_docstring():
    said = reference.described(
        "Find `x` < y.\n\nArgs:\n    points: (n, d) float.\n    k: neighbours.\n\nReturns:\n    (n, k) int.\n\n"
        "Raises:\n    TooFewPoints: k >= n.\n\nSource: Doimo et al. 2024."
    )
    assert "<p>Find <code>x</code> &lt; y.</p>" in said
    assert "<dt><code>points</code></dt><dd>(n, d) float.</dd>" in said and "<dt><code>k</code></dt>" in said
    assert "Returns" in said and "(n, k) int." in said and "TooFewPoints" in said and "Doimo et al. 2024" in said


def test_what_is_indented_below_a_line_belongs_to_it():
    said = reference.described("A *stressed* word, 2 * 3 * 4.\n\nEvery row is one number:\n    columns `a`,\n    b.")
    assert "A <em>stressed</em> word, 2 * 3 * 4." in said
    assert "<p>Every row is one number: columns <code>a</code>, b.</p>" in said


def test_code_in_a_docstring_stays_code():
    assert "<pre>table = f(x)</pre>" in reference.described("What it does:\n\n    table = f(x)\n\nAnd more.")
