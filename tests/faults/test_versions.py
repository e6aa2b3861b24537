"""The versions that are tested: the lock's, and by other commands the oldest and newest that `pyproject.toml` allows.

Models must say the same at all: what they say at the lock is kept beside the tests.
"""

import hashlib
import importlib.metadata
import json
import os

import pytest
import torch
import transformers
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import allowed
from conftest import ROOT, VERSIONS
from peaks_and_gates import models, vlms
from vlm_helpers import FAMILIES, encoded, logits

REQUIREMENTS = [Requirement(line) for line in allowed.REQUIREMENTS]
SAID = ROOT / "tests" / "golden" / "said.json"
ALLOWED = 1e-4  # of the largest logit; float32


def pinned(text):
    """Versions by name, of one `name==version` a line."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def test_the_lock_has_a_version_of_everything_that_is_allowed(report):
    lock = pinned((ROOT / "requirements.lock").read_text())
    for requirement in REQUIREMENTS:
        assert lock[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    report("versions", "requirements at the lock", len(REQUIREMENTS), f"allowed; {len(lock)} packages are pinned")


def test_what_is_installed_is_what_is_to_be_tested(report):
    lock, oldest = pinned((ROOT / "requirements.lock").read_text()), pinned("\n".join(allowed.oldest()))
    for requirement in REQUIREMENTS:
        name = canonicalize_name(requirement.name)
        assert oldest[name] in requirement.specifier
        wanted = {"lock": f"=={lock[name]}", "oldest": f"=={oldest[name]}", "newest": f">={lock[name]}"}[VERSIONS]
        installed = importlib.metadata.version(name)
        assert installed in requirement.specifier & SpecifierSet(wanted), f"{name} {installed}"
    report("versions", "versions of the requirements that are installed", len(REQUIREMENTS), VERSIONS)


def fill(network):
    """Give weights that depend on nothing but their names and shapes, whatever a library draws."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
            drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
            weight.copy_(0.1 * drawn + (1 if weight.ndim == 1 else 0))


def said(family):
    """Logits (n, V) behind the last token of each prompt, of a tiny model that is filled so."""
    if family == "llama":
        model = models.load("tiny-llama", dtype=torch.float32)
        fill(model.network)
        with torch.inference_mode():
            return model.network(torch.arange(3, 40)[None]).logits[:, -1]
    model = vlms.load(f"tiny-{family.replace('_', '-')}", torch.float32, "cpu")
    fill(model.network)
    return logits(model, encoded(model))[:, -1]


@pytest.mark.parametrize("family", ["llama", *FAMILIES])
def test_models_say_the_same_at_every_version(family, report):
    """PG_KEEP_SAID=1 keeps what they say now."""
    largest = said(family).topk(8)
    now = {"logits": largest.values.tolist(), "tokens": largest.indices.tolist()}
    kept = json.loads(SAID.read_text()) if SAID.is_file() else {}
    if os.environ.get("PG_KEEP_SAID"):
        kept |= {family: now | {"transformers": transformers.__version__}}
        SAID.write_text(json.dumps(kept, indent=1) + "\n")
    before = kept[family]
    assert now["tokens"] == before["tokens"]
    values = torch.tensor(before["logits"])
    deviation = float((torch.tensor(now["logits"]) - values).abs().max() / values.abs().max())
    pair = f"transformers {transformers.__version__} = {before['transformers']} ({family}, float32)"
    report("versions", pair, 1, f"largest relative deviation {deviation:.1e}, allowed {ALLOWED:.0e}")
    assert deviation <= ALLOWED
