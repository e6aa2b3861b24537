"""What the site's builder is given: settings, words that are explained."""

import re

import pytest
import yaml

from conftest import ROOT
from peaks_and_gates import site

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())


def test_nothing_leads_outside_unless_a_repository_is_named():
    made = site.settings(CONFIG, "2026-01-02")
    assert made["repository"]["url"] == "" and made["launch_buttons"] == {"thebe": False}
    assert not any(made["html"][f"use_{what}_button"] for what in ("edit_page", "issues", "repository"))
    assert "results of 2026-01-02" in made["html"]["extra_footer"] and re.search(
        r"\d\.\d", made["html"]["extra_footer"]
    )
    assert CONFIG["launch_buttons"]["colab_url"]  # the book's own settings are as they were


def test_one_setting_brings_the_buttons():
    named = CONFIG | {"repository": {"url": "https://github.com/owner/peaks-and-gates", "branch": "main"}}
    made = site.settings(named, "")
    assert {"colab_url", "binderhub_url"} <= set(made["launch_buttons"]) and not made["launch_buttons"]["thebe"]
    assert all(made["html"][f"use_{what}_button"] for what in ("edit_page", "issues", "repository"))


def test_words_are_taken_from_the_glossary():
    words = site.terms((ROOT / "book" / "glossary.md").read_text())
    by_name = {word["name"]: word for word in words}
    assert by_name["intrinsic dimension"]["anchor"] == "term-intrinsic-dimension" and len(words) > 20
    lengths = [len(word["name"]) for word in words]
    assert lengths == sorted(lengths, reverse=True)
    assert not any(re.search(r"[{}`\[\]]|See ", word["says"]) for word in words)
    assert not by_name.keys() & site.ORDINARY


@pytest.mark.parametrize("text", ["", "# Glossary\n\nNothing yet.\n", "```{glossary}\n```\n"])
def test_a_glossary_without_words_has_none(text):
    assert site.terms(text) == []
