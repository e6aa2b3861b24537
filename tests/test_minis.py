"""The minis: what they read is what they were trained on, and training can be killed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from peaks_and_gates import (
    codebook,
    eyes,
    mini_cards,
    mini_data,
    mini_figures,
    mini_training,
    minis,
    presets,
    scene_words,
    scenes,
    store,
    training_state,
    vlms,
    wiring,
)
from peaks_and_gates.errors import BadParameter, HashMismatch, MissingFile, TrainingDiverged, UnknownName
from peaks_and_gates.scene_drawing import draw
from peaks_and_gates.tokens import FAMILIES
from vlm_helpers import broken, close

SHAPE, CODES = (minis.recipes("smoke")[part] for part in ("shape", "codebook"))


@pytest.fixture(scope="module")
def native():
    """A native mini with random weights, large enough that tokens matter."""
    torch.manual_seed(0)
    network, processor = minis.native(SHAPE, CODES)
    for p in network.model.layers.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.2)
    return vlms.VisionLanguageModel("native", network.eval(), processor, FAMILIES["chameleon"], "{prompt}", "native")


@pytest.fixture
def lessons(native):
    return mini_data.Lessons(native.tokenizer, 96, 0)


def test_a_prompt_is_read_as_it_was_trained(native, lessons):
    """The processor writes a prompt with the ids and kinds that training packs, for both architectures."""
    _, adapted = minis.adapted(SHAPE)
    for words, processor, prefix, family in (
        (native.tokenizer, native.processor, "marked image", "chameleon"),
        (adapted.tokenizer, adapted, "image", "llava"),
    ):
        lessons = mini_data.Lessons(words, 96, 0)
        packed = lessons.batch(0, 8, prefix)
        n_prefix = 1 + minis.N_IMAGE + 2 * (prefix == "marked image")
        prompt = f"<image> {scene_words.CLASS_QUESTION}"
        model = replace(native, processor=processor, family=FAMILIES[family])
        settings = {"return_for_text_completion": True} if family == "chameleon" else {}
        ids = processor(images=[draw(packed.scenes[0])], text=[prompt], return_tensors="pt", **settings)["input_ids"][0]
        question = lessons.text(scene_words.CLASS_QUESTION)
        assert ids.tolist() == [*packed.ids[0, :n_prefix].tolist(), *question], model.name


def packed_is_single(data, native):
    """Each text of a row gets the states it would get in a prompt of its own."""
    lessons = data.Lessons(native.tokenizer, 96, 0)
    packed = lessons.batch(3, 4, "marked image")
    codes = torch.randint(len(native.tokenizer) - CODES["n_codes"], len(native.tokenizer), (4, minis.N_IMAGE))
    packed = mini_training.with_codes(packed, codes)
    with torch.inference_mode():
        hidden, _ = mini_training.states(native.network, packed, None, False)
        n_prefix = minis.N_IMAGE + 3
        for row in range(2):
            starts = (packed.positions[row] == n_prefix).nonzero().flatten().tolist()
            assert len(starts) > 4
            for start in starts:
                rest = packed.positions[row, start:]
                falls = (rest.diff() <= 0).nonzero().flatten()
                stop = start + (int(falls[0]) + 1 if len(falls) else len(rest))
                ids = torch.cat([packed.ids[row, :n_prefix], packed.ids[row, start:stop]])[None]
                alone = native.network.model(input_ids=ids).last_hidden_state[0, n_prefix:]
                assert close(hidden[row, start:stop], alone)


def targets_are_the_next_tokens(data, native):
    """What is predicted at a place is what stands behind it; all answers are, and no question."""
    lessons = data.Lessons(native.tokenizer, 96, 0)
    packed = lessons.batch(0, 4, "marked image")
    assert torch.equal(packed.ids[packed.rows, packed.places + 1], packed.targets)
    asked = [len(scene_words.questions(scene)) for scene in packed.scenes]
    assert (packed.targets == lessons.stop).sum() == sum(min(n, data.N_QUESTIONS) + 2 for n in asked)
    ids = packed.targets[packed.rows == 0].tolist()
    said = native.tokenizer.decode(ids).split("</s>")
    assert any(scenes.label(packed.scenes[0]) == text.strip() for text in said)
    told = {native.tokenizer.decode(lessons.text(text)) for text in scene_words.captions(packed.scenes[0])}
    assert any(text.strip() in told for text in said)
    alone = lessons.batch(0, 4, "caption")
    assert torch.equal(alone.ids[alone.rows, alone.places + 1], alone.targets)
    after = lessons.batch(0, 4, "caption, image")
    assert len(after.targets) == 0
    assert (after.ids[:, 0] == lessons.start).all()


def direct_captions_follow_the_image(data, native):
    """Their first word is predicted by the end-of-image token; the rest as always."""
    lessons = data.Lessons(native.tokenizer, 96, 0, direct=1.0)
    packed = lessons.batch(0, 4, "marked image")
    end = minis.N_IMAGE + 2
    at_end = packed.targets[packed.places == end]
    assert len(at_end) == 4
    elsewhere = packed.places != end
    rows, places = packed.rows[elsewhere], packed.places[elsewhere]
    assert torch.equal(packed.ids[rows, places + 1], packed.targets[elsewhere])
    for row, first in enumerate(at_end.tolist()):
        openings = {lessons.text(text)[0] for text in scene_words.captions(packed.scenes[row])}
        assert first in openings
    short = data.Lessons(native.tokenizer, 96, 0, captions="short", direct=1.0).batch(0, 4, "marked image")
    firsts = native.tokenizer.convert_ids_to_tokens(short.targets[short.places == end].tolist())
    assert firsts == [scenes.label(scene).split()[0] for scene in short.scenes]


def every_kind_is_asked_before_a_second_of_one(data, native):
    """A row has questions of all kinds that its scene allows."""
    lessons = data.Lessons(native.tokenizer, 96, 0)
    for i, scene in enumerate(scenes.sample("train", 20, 1)):
        possible = {question.text: question.kind for question in scene_words.questions(scene)}
        told = lessons.told(scene, np.random.default_rng(i))[:-2]  # without class and caption
        asked = [possible[native.tokenizer.decode(prompt)] for prompt, _ in told]
        assert len(asked) == min(len(possible), data.N_QUESTIONS)
        assert set(asked) == set(possible.values())


CHECKS = [packed_is_single, targets_are_the_next_tokens, direct_captions_follow_the_image]
CHECKS += [every_kind_is_asked_before_a_second_of_one]


@pytest.mark.parametrize("check", CHECKS)
def test_packing(check, native):
    check(mini_data, native)


FAULTS = {
    "texts see each other": ("(part[:, :, None] == part[:, None, :]) |", "(part[:, :, None] > 0) |", packed_is_single),
    "positions run through": ("= len(prefix) + torch.arange(", "= at + torch.arange(", packed_is_single),
    "the prefix is not seen": ("| (part == 0)[:, None, :]", "| (part == -2)[:, None, :]", packed_is_single),
    "targets a token late": ("(row, at + len(prompt) - 1 + j if", "(row, at + len(prompt) + j if",
                             targets_are_the_next_tokens),
    "direct captions behind another text": ("if prompt else len(prefix) - 1", "", direct_captions_follow_the_image),
    "questions in any order": ("asked.sort(", "sorted(asked, ", every_kind_is_asked_before_a_second_of_one),
    "questions are predicted": ("enumerate(rest)]", "enumerate(text)]", targets_are_the_next_tokens),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault, native):
    old, new, check = FAULTS[fault]
    with broken(mini_data, old, new) as data, pytest.raises((AssertionError, IndexError)):
        check(data, native)


def test_steps_are_drawn_by_seed_and_step_alone(native):
    one, other = (mini_data.Lessons(native.tokenizer, 96, 0) for _ in range(2))
    one.batch(0, 8, "image")
    assert torch.equal(one.batch(5, 8, "image").ids, other.batch(5, 8, "image").ids)
    assert not torch.equal(other.batch(5, 8, "image").ids, other.batch(6, 8, "image").ids)
    seen = [i for step in range(12) for i in one.chosen(step, 8)]
    assert sorted(seen) == list(range(96))
    assert one.chosen(12, 8) != one.chosen(0, 8)
    assert {scene for scene in one.pool}.isdisjoint(scenes.sample("test", 300, 0))


def test_the_penalty_is_on_the_attention_of_text_to_the_image(native, lessons):
    """Its value is the mean over layers, heads and text tokens of the attention on image tokens."""
    native.network.set_attn_implementation("eager")
    try:
        packed = lessons.batch(0, 3, "marked image")
        packed = mini_training.with_codes(packed, torch.full((3, minis.N_IMAGE), len(native.tokenizer) - 1))
        _, share = mini_training.states(native.network, packed, None, True)
        with torch.inference_mode():
            mask = torch.zeros(packed.reads.shape).masked_fill(~packed.reads, torch.finfo(torch.float32).min)[:, None]
            found = native.network.model(
                input_ids=packed.ids, attention_mask=mask, position_ids=packed.positions, output_attentions=True
            ).attentions
    finally:
        native.network.set_attn_implementation("sdpa")
    image, text = packed.tokens.where("image"), packed.tokens.where("after")
    sums = [
        weights[row, :, place][:, image[row]].sum(-1).mean()
        for weights in found
        for row, place in text.nonzero().tolist()
    ]
    assert share.item() == pytest.approx(torch.stack(sums).mean().item(), rel=1e-4)
    assert 0.01 < share.item() < 1


def test_every_weight_has_one_optimizer(native):
    weights = dict(native.network.named_parameters())
    muon, adam = training_state.optimizers_of(weights)
    names = {p: name for name, p in weights.items()}
    held = [names[p] for optimizer in (muon, adam) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(weights)
    of_muon = {names[p] for p in muon.param_groups[0]["params"]}
    assert "model.layers.1.mlp.up_proj.weight" in of_muon
    assert not any("embed" in name or "norm" in name for name in of_muon)


def test_a_codebook_is_trained_once_and_describes(tmp_path):
    path = tmp_path / "codebook.safetensors"
    weights = codebook.codebook(CODES, path)
    assert weights["vq.quantize.embedding.weight"].dtype == torch.float32
    written = path.read_bytes()
    again = codebook.codebook(CODES, path)
    assert path.read_bytes() == written
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    path.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    with pytest.raises(HashMismatch, match="is damaged"):
        codebook.codebook(CODES, path)


def test_eyes_are_what_the_tower_gives_the_language_model(tmp_path):
    """The states that the reader learns from are those that the projector reads; training makes them tell more."""
    settings = minis.recipe("smoke", "adapted")["eyes"]
    network, processor = minis.adapted(SHAPE)
    weights = eyes.eyes(settings, tmp_path / "eyes.safetensors")
    before = network.model.vision_tower.state_dict()["embeddings.patch_embedding.weight"].clone()
    network.model.vision_tower.load_state_dict(weights)
    assert not torch.equal(before, network.model.vision_tower.embeddings.patch_embedding.weight)
    shown = scenes.sample("validation", 3, 0)
    pixels = processor.image_processor([draw(scene, codebook.SIDE) for scene in shown], return_tensors="pt")
    with torch.inference_mode():
        expected = network.model.multi_modal_projector(eyes.seen(network.model.vision_tower, codebook.pixels(shown)))
        found = network.model.get_image_features(**pixels, return_dict=True).pooler_output
    assert close(torch.stack(list(found)), expected)


def test_eyes_are_asked_for_what_is_under_each_patch():
    """Scores that say of every patch the object whose pixels it shows cost nothing; those of a turned picture do."""
    shown = scenes.sample("validation", 20, 0)
    contents, place = codebook.cells(shown), eyes.cell_of_patches()
    assert place.view(8, 8)[0].tolist() == [0, 0, 0, 1, 1, 2, 2, 2] and place.view(8, 8)[:, 0].tolist()[3] == 3
    drawn = codebook.pixels(shown).float()
    inked = ((drawn - drawn[:, :, :1, :1]).abs().amax(1) > 25).view(-1, 8, 8, 8, 8).float().mean((2, 4)).flatten(1)
    assert (contents[:, place, 0][inked > 0.5] > 0).all()  # a patch that shows an object is in a cell that has one
    right = [one_hot(place, 9).expand(20, -1, -1)]
    right += [one_hot(contents[:, place, i], len(names)) for i, names in enumerate(codebook.ATTRIBUTES)]
    scores = 100.0 * torch.cat(right, 2)
    assert eyes.reading_loss(scores, contents) < 1e-6
    assert eyes.reading_loss(scores.view(20, 8, 8, -1).transpose(1, 2).flatten(1, 2), contents) > 1


def test_a_codebook_describes(tmp_path):
    weights = codebook.codebook(CODES, tmp_path / "codebook.safetensors")
    shown = scenes.sample("validation", 8, 0)
    codes = torch.randint(0, CODES["n_codes"], (8, minis.N_IMAGE))
    drawn = codebook.decoded(weights, CODES, codes)
    assert drawn[0].size == (codebook.SIDE, codebook.SIDE)
    contents = codebook.cells(shown)
    for row, scene in enumerate(shown):
        assert (contents[row, :, 0] > 0).sum() == sum(thing.count for thing in scene.things)
    scores = torch.zeros(8, 9 * sum(map(len, codebook.ATTRIBUTES)))
    assert codebook.reading_loss(scores, contents).item() == pytest.approx(np.log([7, 9, 5, 3]).sum(), rel=1e-5)


def test_codes_that_nothing_uses_are_moved():
    network, _ = minis.native(SHAPE, CODES)
    vq, z = network.model.vqmodel, torch.randn(4, CODES["code_size"], 8, 8)
    codebook.place(vq, z)
    points = codebook.flat(z)
    placed = {tuple(code) for code in vq.quantize.embedding.weight.tolist()}
    assert len(placed) == CODES["n_codes"] and placed <= {tuple(point) for point in points.tolist()}
    before, used = vq.quantize.embedding.weight.clone(), torch.ones(CODES["n_codes"])
    used[3] = 0
    codebook.move(vq, z, torch.zeros_like(z), used)
    changed = (vq.quantize.embedding.weight != before).any(1)
    assert changed.nonzero().flatten().tolist() == [3]
    assert used[3] == 1


@pytest.fixture
def place(own_cache, tmp_path, monkeypatch):
    """Folders of a test's own for weights and cache."""
    monkeypatch.setattr(minis, "project_folder", lambda: tmp_path)
    return tmp_path / "weights" / "smoke" / "minis"


def test_every_mini_is_trained_and_runs(place):
    """All kinds, through the command; a second call does nothing; a wired one carries its wiring."""
    from peaks_and_gates.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["train", "--preset", "smoke", "mini-native", "--seed", "0"])
    assert ended.value.code == 0
    folders = mini_training.train_all("smoke", ["words", "adapted", "gated", "open", "taxed"])
    for folder in [place / "native-0", *folders[1:]]:
        card = json.loads(folder.with_suffix(".json").read_text())
        assert len(card["log"]["loss"]) == minis.recipe("smoke", "native")["steps"]
        assert set(card["scores"]["questions"]) <= set(scene_words.KINDS)
        assert {"all questions", "classes", "cider_ptb"} < set(card["scores"])
        model = vlms.load(str(folder), torch.float32)
        wired = folder.name.split("-")[0] in wiring.WIRINGS
        assert (getattr(model.network.config, "wiring", None) in wiring.WIRINGS) == wired
        assert (folder / "model.safetensors").stat().st_size < 15e6
    changed = (place / "native-0" / "model.safetensors").stat().st_mtime_ns
    mini_training.train("smoke", "native")
    assert (place / "native-0" / "model.safetensors").stat().st_mtime_ns == changed


def test_more_questions_are_asked_without_training_again(place, monkeypatch):
    folder = mini_training.train("smoke", "native")
    card = folder.with_suffix(".json")
    before, weights = json.loads(card.read_text()), (folder / "model.safetensors").read_bytes()
    known = minis.recipes("smoke")
    monkeypatch.setattr(minis, "recipes", lambda preset: known | {"n_scored": 160})
    monkeypatch.setattr(mini_training, "begin", lambda *a: pytest.fail("a mini that is done was trained again"))
    mini_training.train("smoke", "native")
    after = json.loads(card.read_text())
    assert [about["scores"]["all questions"]["n"] for about in (before, after)] == [known["n_scored"], 160]
    assert {key for key in after if after[key] != before[key]} == {"n_scored", "scores", "seal"}
    assert (folder / "model.safetensors").read_bytes() == weights


def test_a_killed_run_ends_with_the_same_weights(place, monkeypatch):
    monkeypatch.setattr(mini_training, "SAVE_EVERY", 2)
    whole = mini_training.train("smoke", "native", 1)
    expected = (whole / "model.safetensors").read_bytes()
    monkeypatch.setenv("PG_CACHE", str(place / "other-cache"))
    whole.with_suffix(".json").unlink()
    before = mini_training.loss_of

    def killed(*arguments):
        if arguments[-1] == 5:
            raise KeyboardInterrupt
        return before(*arguments)

    monkeypatch.setattr(mini_training, "loss_of", killed)
    with pytest.raises(KeyboardInterrupt):
        mini_training.train("smoke", "native", 1)
    steps = []
    monkeypatch.setattr(mini_training, "loss_of", lambda *a: steps.append(a[-1]) or before(*a))
    mini_training.train("smoke", "native", 1)
    assert steps == [4, 5]
    assert (whole / "model.safetensors").read_bytes() == expected


def test_pictures_are_imagined_token_by_token(native):
    """Each image token is drawn from what the model expects after all tokens before it, cached or not."""
    first = native.tokenizer.convert_tokens_to_ids(minis.code_names(1)[0])
    n = CODES["n_codes"]
    table = native.network.get_output_embeddings().weight[first : first + n].detach()
    text = "a large plain red circle at the top left on a white background."
    found = mini_cards._imagined(native, text, table, first, torch.Generator().manual_seed(3))
    assert found.shape == (1, minis.N_IMAGE) and found.min() >= 0 and found.max() < n
    ids = native.tokenizer(f"{text}<begin>", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        whole = native.network.model(input_ids=torch.cat([ids, found + first], 1)).last_hidden_state
    generator = torch.Generator().manual_seed(3)
    for place, code in enumerate(found[0].tolist()):
        chances = (whole[0, ids.shape[1] - 1 + place] @ table.T).softmax(-1)
        assert torch.multinomial(chances, 1, generator=generator).item() == code
    drawn = mini_cards.imagined(native, [text, text])
    assert [picture.size for picture in drawn] == [(codebook.SIDE, codebook.SIDE)] * 2


def test_the_cards_of_the_book_are_those_of_its_weights():
    """Every mini that the presets name is there, is the file its card describes, and answers what it must."""
    names = presets.load("laptop")["minis"]
    table = mini_cards.abilities(names)
    for name in names:
        about = mini_cards.card(name)
        weights = vlms.mini_folder(vlms.VLMS[name]["folder"]) / "model.safetensors"
        assert about["sha256"] == store.file_sha256(weights)
        assert weights.stat().st_size <= 15e6
        made_from = about["made_from"]["recipe"]
        assert made_from == minis.recipe("laptop", mini_figures.role(name), made_from["seed"])
        scores = table[table["mini"] == name].set_index("metric").loc[["colour", "shape"]]
        assert (scores["value"] >= 0.9).all(), name
    losses = mini_cards.losses(names)
    assert losses["loss"].notna().all()
    with pytest.raises(BadParameter, match="is no mini"):
        mini_cards.card("tiny-chameleon")


def test_messages(place):
    with pytest.raises(UnknownName, match="Did you mean 'gated'"):
        mini_training.train_all("smoke", ["gate"])
    with pytest.raises(UnknownName, match="preset with minis"):
        minis.recipes("paper")
    with pytest.raises(UnknownName, match="Did you mean 'steps'"):
        minis.recipe("smoke", "native", step=3)
    with pytest.raises(MissingFile, match="run `pg train mini-native` first"):
        mini_training.train("smoke", "gated")
    with pytest.raises(TrainingDiverged, match="Lower `learning_rate`"):
        mini_training.train("smoke", "words", learning_rate=1e4, steps=60)
    with pytest.raises(MissingFile, match="pg train mini-native"):
        vlms.mini_folder(str(place / "native-0"))
