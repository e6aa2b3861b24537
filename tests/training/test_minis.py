"""The minis: what they read is what they were trained on, and training can be killed."""

import pytest
import torch
from resuming import killed_and_resumed

from conftest import ROOT
from peaks_and_gates.cache import file_sha256, read_json
from peaks_and_gates.errors import HashMismatch, MissingFile
from peaks_and_gates.gate import vlm
from peaks_and_gates.gate.tokens import FAMILIES
from training.common import load_or_train
from training.minis import data, image_tokenizer, losses, models
from training.minis import train as minis
from training.scenes import words
from training.scenes.drawing import draw
from training.scenes.scene import label, sample

SHAPE, CODES = (models.recipes("smoke")[part] for part in ("shape", "codebook"))
N_IMAGE = image_tokenizer.N_IMAGE


@pytest.fixture(scope="module")
def native():
    """A native mini with random weights, large enough that tokens matter."""
    torch.manual_seed(0)
    network, processor = models.native(SHAPE, CODES)
    for p in network.model.layers.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.2)
    return vlm.VisionLanguageModel("native", network.eval(), processor, FAMILIES["chameleon"], "{prompt}")


def test_a_prompt_is_read_as_it_was_trained(native):
    """The processor writes a prompt with the ids that training packs, for both architectures."""
    _, adapted = models.adapted(SHAPE)
    for processor, prefix in ((native.processor, "marked image"), (adapted, "image")):
        lessons = data.Lessons(processor.tokenizer, 96, 0)
        packed = lessons.batch(0, 8, prefix)
        n_prefix = 1 + N_IMAGE + 2 * (prefix == "marked image")
        settings = {"return_for_text_completion": True} if prefix == "marked image" else {}
        text = f"<image> {words.CLASS_QUESTION}"
        ids = processor(images=[draw(packed.scenes[0])], text=[text], return_tensors="pt", **settings)["input_ids"][0]
        assert ids.tolist() == [*packed.ids[0, :n_prefix].tolist(), *lessons.text(words.CLASS_QUESTION)]


def test_packed_texts_are_read_as_if_alone(native):
    """Each text of a row gets the states it would get in a prompt of its own."""
    packed = data.Lessons(native.tokenizer, 96, 0).batch(3, 4, "marked image")
    codes = torch.randint(len(native.tokenizer) - CODES["n_codes"], len(native.tokenizer), (4, N_IMAGE))
    packed = losses.with_codes(packed, codes)
    n_prefix = N_IMAGE + 3
    with torch.inference_mode():
        hidden, _ = losses.states(native.network, packed, None, False)
        for row in range(2):
            starts = (packed.positions[row] == n_prefix).nonzero().flatten().tolist()
            assert len(starts) > 4
            for start in starts:
                falls = (packed.positions[row, start:].diff() <= 0).nonzero().flatten()
                stop = start + int(falls[0]) + 1 if len(falls) else packed.ids.shape[1]
                ids = torch.cat([packed.ids[row, :n_prefix], packed.ids[row, start:stop]])[None]
                alone = native.network.model(input_ids=ids).last_hidden_state[0, n_prefix:]
                assert (hidden[row, start:stop] - alone).abs().max() < 1e-4


def test_targets_are_the_next_tokens(native):
    """What is predicted at a place is what stands behind it; all answers are, and no question."""
    lessons = data.Lessons(native.tokenizer, 96, 0)
    for prefix in ("marked image", "caption"):
        packed = lessons.batch(0, 4, prefix)
        assert torch.equal(packed.ids[packed.rows, packed.places + 1], packed.targets)
        n = [min(len(words.questions(scene)), data.N_QUESTIONS) + 2 for scene in packed.scenes]
        assert (packed.targets == lessons.stop).sum() == sum(n)
    assert len(lessons.batch(0, 4, "caption, image").targets) == 0


def test_direct_captions_follow_the_image(native):
    """Their first word is predicted by the end-of-image token."""
    packed = data.Lessons(native.tokenizer, 96, 0, captions="short", direct=1.0).batch(0, 4, "marked image")
    at_end = packed.targets[packed.places == N_IMAGE + 2]
    assert native.tokenizer.convert_ids_to_tokens(at_end) == [label(scene).split()[0] for scene in packed.scenes]


def test_steps_are_drawn_by_seed_and_step_alone(native):
    one, other = (data.Lessons(native.tokenizer, 96, 0) for _ in range(2))
    one.batch(0, 8, "image")
    assert torch.equal(one.batch(5, 8, "image").ids, other.batch(5, 8, "image").ids)
    assert sorted(i for step in range(12) for i in one.chosen(step, 8)) == list(range(96))
    assert one.chosen(12, 8) != one.chosen(0, 8)
    assert set(one.pool).isdisjoint(sample("test", 300, 0))  # no test scene is learned


def test_an_image_tokenizer_is_trained_once(tmp_path):
    path = tmp_path / "codebook.safetensors"
    weights = load_or_train(CODES, path, image_tokenizer.train)
    again = load_or_train(CODES, path, lambda settings: pytest.fail("trained again"))
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(HashMismatch, match="is damaged"):
        load_or_train(CODES, path, image_tokenizer.train)


@pytest.fixture
def place(own_cache, tmp_path, monkeypatch):
    """Folders of a test's own for weights and cache."""
    monkeypatch.setattr(models, "weights_folder", lambda preset: tmp_path / "weights" / preset)
    return tmp_path / "weights" / "smoke" / "minis"


def test_every_mini_is_trained_and_runs(place, monkeypatch):
    """All kinds; a second call does nothing; a wired one carries its wiring; no test scene is left unscored."""
    with pytest.raises(MissingFile, match=r"run `python -m training.minis native`"):
        minis.train("smoke", "gated")
    for folder in minis.train_all("smoke", ["native", "text-only", "adapted", "gated", "penalised"], [0]):
        card = read_json(folder.with_suffix(".json"))
        assert len(card["log"]["loss"]) == models.recipe("smoke", "native")["steps"]
        if "text-only" not in folder.name:
            assert {"questions", "all questions", "classes", "cider_ptb"} == set(card["scores"])
            config = vlm.load(str(folder), torch.float32).network.config
            assert (getattr(config, "wiring", None) == "gated") == (folder.name == "gated-0")
    monkeypatch.setattr(minis, "build", lambda *a: pytest.fail("trained again"))
    minis.train("smoke", "native")


def test_a_killed_run_ends_with_the_same_weights(place, tmp_path, monkeypatch):
    recipe = models.recipe
    monkeypatch.setattr(models, "recipe", lambda *names: recipe(*names) | {"steps": 8})
    folder = minis.train("smoke", "native", 1)
    expected = (folder / "model.safetensors").read_bytes()
    folder.with_suffix(".json").unlink()
    assert killed_and_resumed(lambda: minis.train("smoke", "native", 1), monkeypatch, tmp_path)[7] == 5
    assert (folder / "model.safetensors").read_bytes() == expected


def test_the_shipped_minis_are_those_of_the_recipes_and_can_answer():
    for name, own in models.recipes("laptop")["minis"].items():
        for seed in own.get("seeds", [0]):
            folder = ROOT / "weights" / "minis" / f"{name}-{seed}"
            card = read_json(folder.with_suffix(".json"))
            assert card["sha256"] == file_sha256(folder / "model.safetensors")
            assert card["made_from"]["recipe"] == models.recipe("laptop", name, seed)
            scores = card["scores"].get("questions", {})
            assert name == "text-only" or min(scores[kind]["value"] for kind in ("colour", "shape")) > 0.9
    for name in ("mini-pictures", "page-scenes"):
        assert read_json(ROOT / f"data/{name}.json")["sha256"] == file_sha256(ROOT / f"data/{name}.parquet")
