"""The token map of every family against layouts written out by hand, and what is refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from peaks_and_gates.errors import BadImage, BadParameter, ModelUnavailable, UnknownName
from peaks_and_gates.gate import inputs, vlm
from peaks_and_gates.gate.tokens import FAMILIES, KINDS, TokenMap, family_of, token_map
from tiny_vlms import load, picture, tiny_vlm

LETTERS = {"p": "padding", "t": "text", "b": "begin", "i": "image", "s": "special", "e": "end"}
TEXTS = ["ab<image> cd", "<image>?", "a longer one: <image> x"]
SIZES = [(64, 64), (64, 32), (20, 50)]  # width and height in pixels


def tiles(rows, columns):
    """Idefics3: a mark, a tag and 16 features per tile, a line break per row, one more, and the whole image."""
    one_row = ("ss" + 16 * "i") * columns + "s"
    return "b" + (one_row * rows + "sss" + 16 * "i")[1:] + "e"


def rows_of(rows, columns):
    """Pixtral: rows of features, a break after each, the last one the end."""
    return (("i" * columns + "s") * rows)[:-1] + "e"


# Written from each processor's layout at SIZES: 32 pixels a side and 8 a token, see `tiny_vlms`.
BLOCKS = {
    "chameleon": ["b" + 16 * "i" + "e"] * 3,
    # Size as H*W, wrapper, H rows of W codes and a line end; end of frame and of image.  1,024 pixels: 4*4, 2*5, 7*3.
    "emu3": ["b" + "ssss" + n * "i" + "ee" for n in (4 * 5, 2 * 6, 7 * 4)],
    "janus": ["b" + 16 * "i" + "e"] * 3,
    "llava": [16 * "i"] * 3,
    # The image as 4 x 4, and its tiles with a line end per row: 4 x 4, 4 x 8, 8 x 4; in chat marks.
    "llava_onevision": ["b" + n * "i" + "e" for n in (16 + 4 * 5, 16 + 4 * 9, 16 + 8 * 5)],
    "pixtral": [rows_of(4, 4), rows_of(2, 4), rows_of(4, 2)],
    "idefics3": [tiles(2, 2), tiles(1, 2), tiles(2, 1)],
}
STARTED = {"chameleon", "emu3", "janus", "llava", "pixtral"}  # with a token before the text


def expected(family, row):
    """Kinds of one prompt, without padding, one letter a token: the tiny tokenizers have one token a character."""
    before, after = (len(part) for part in TEXTS[row].split("<image>"))
    end = "e" if family == "llava" else "t"
    return "t" * (before + (family in STARTED)) + BLOCKS[family][row] + end + "t" * (after - 1)


def spelled(kinds):
    """Kinds of one row as letters."""
    return "".join(next(k for k, v in LETTERS.items() if v == KINDS[kind]) for kind in kinds.tolist())


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def model(request):
    return load(request.param)


@pytest.fixture(scope="session")
def family(model):
    return family_of(model.network.config)


@pytest.fixture(scope="session")
def batches(model):
    """The three prompts as a batch padded on either side, and each alone."""
    images = [picture(i, size) for i, size in enumerate(SIZES)]
    both = {side: vlm.encode(model, images, TEXTS, side).tokens for side in ("left", "right")}
    return both | {"alone": [vlm.encode(model, images[i : i + 1], TEXTS[i : i + 1]).tokens for i in range(3)]}


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_token_is_what_the_layout_says(family, batches, side):
    rows = [expected(family, row) for row in range(3)]
    width = max(map(len, rows))
    pad = str.rjust if side == "left" else str.ljust
    assert [spelled(kinds) for kinds in batches[side].kinds] == [pad(row, width, "p") for row in rows]
    assert [spelled(alone.kinds[0]) for alone in batches["alone"]] == rows
    assert batches[side].kinds.dtype == torch.uint8


def test_an_image_in_one_piece_is_one_block(family, model, monkeypatch):
    if family == "idefics3":
        monkeypatch.setattr(model.processor.image_processor, "do_image_splitting", False)
        found = vlm.encode(model, [picture(0, (64, 64))], ["a<image>b"]).tokens
        assert spelled(found.kinds[0]) == "t" + "bs" + 16 * "i" + "e" + "t"


def one(letters):
    """A map from letters, one string a row."""
    kinds = [[KINDS.index(LETTERS[letter]) for letter in row] for row in letters]
    return TokenMap(torch.tensor(kinds, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("groups", "left", "right"),
    [
        (["padding"], "110000000000", "000000000011"),
        (["text"], "001100000111", "110000011100"),
        (["begin"], "000010000000", "001000000000"),
        (["image"], "000001011000", "000101000000"),
        (["special"], "000000100000", "000010000000"),
        (["end"], "000000000000", "000000100000"),
        (["block"], "000011111000", "001111100000"),
        (["prompt"], "001111111111", "111111111100"),
        (["last"], "000000000001", "000000000100"),
        (["last image"], "000000001000", "000001000000"),
        (["gate"], "000000000000", "000000100000"),
        (["after"], "000000000000", "000000011100"),
        (["begin", "special"], "000010100000", "001010000000"),
    ],
)
def test_groups_on_maps_written_by_hand(groups, left, right):
    found = one(["ppttbisiittt", "ttbisiettt" + "pp"]).where(*groups)
    assert found.dtype == torch.bool
    assert ["".join("01"[int(x)] for x in row) for row in found] == [left, right]


def test_the_gate_of_two_tokens_is_hidden_as_both_and_read_at_the_last():
    found, emu3 = one(["tbiieetp", "tbieettt"]), load("emu3")
    assert found.where("end").tolist() == [[i in (4, 5) for i in range(8)], [i in (3, 4) for i in range(8)]]
    assert found.where("gate").int().argmax(1).tolist() == [5, 4] and found.where("gate").sum(1).tolist() == [1, 1]
    assert found.where("after").sum(1).tolist() == [1, 3]
    batch = vlm.encode(emu3, [picture(0)], ["<image> What?"])
    end, gate = (batch.inputs["input_ids"][batch.tokens.where(group)] for group in ("end", "gate"))
    assert emu3.tokenizer.convert_ids_to_tokens(end) == ["<|extra_201|>", "<|image end|>"]
    assert emu3.tokenizer.convert_ids_to_tokens(gate) == ["<|image end|>"]


def test_marks_around_the_image_are_written_and_told_from_those_of_a_chat():
    chat = replace(load("llava_onevision"), template="<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
    batch = vlm.encode(chat, [picture(0)], ["<image>a"])
    assert batch.texts == ("<|im_start|>user\n<|im_start|><image><|im_end|>a<|im_end|>\n<|im_start|>assistant\n",)
    assert spelled(batch.tokens.kinds[0]) == "t" * 6 + BLOCKS["llava_onevision"][0] + "t" * 14


def relative(found, chosen):
    """Where the chosen tokens are in each prompt, counted from its first token."""
    prompts = found.where("prompt").int().argmax(1)
    return [(row.nonzero().flatten() - start).tolist() for row, start in zip(chosen, prompts, strict=True)]


def test_random_tokens_do_not_depend_on_padding_or_batch_mates(batches):
    left, right = (relative(batches[side], batches[side].random("image", 5, 3)) for side in ("left", "right"))
    alone = [relative(found, found.random("image", 5, 3))[0] for found in batches["alone"]]
    assert left == right == alone
    assert all(len(set(row)) == 5 for row in left)
    assert not (batches["left"].random("image", 5, 3) & ~batches["left"].where("image")).any()
    assert left != relative(batches["left"], batches["left"].random("image", 5, 4))


def test_random_tokens_with_a_seed_per_row():
    found = one(["tb" + 30 * "i" + "et"] * 2)
    same, other = found.random("image", 3, 0), found.random("image", 3, [0, 1])
    assert torch.equal(same[0], same[1]) and torch.equal(other[0], same[0])
    assert not torch.equal(other[0], other[1])
    for n, seeds, error in ((3, [0], ValueError), (31, 0, BadParameter), (0, 0, BadParameter)):
        with pytest.raises(error, match=r"shorter|a prompt has only 30|n=0"):
            found.random("image", n, seeds)
    with pytest.raises(UnknownName, match="Did you mean 'image'"):
        found.where("images")


def mapped(model, words, mask=None, with_image=True):
    """The map of a prompt given token by token: letters, and I, B and E for the family's own tokens."""
    processor, own = model.processor, model.family
    named = {"I": processor.image_token, "B": own.begin and getattr(processor, own.begin)}
    named |= {"E": own.end and getattr(processor, own.end)}
    ids = torch.tensor([[processor.tokenizer.convert_tokens_to_ids(named.get(word, word)) for word in words]])
    mask = torch.ones_like(ids) if mask is None else torch.tensor([mask])
    return token_map(own, processor, model.network.config, ids, mask, with_image)


def test_a_prompt_token_by_token(model):
    begin, end = bool(model.family.begin), bool(model.family.end)
    block, layout = "B" * begin + "II" + "E" * end, "b" * begin + "ii" + "e"
    assert spelled(mapped(model, f"x{block}yz").kinds[0]) == f"t{layout}tt"[: 4 + begin + end + 1]
    assert not mapped(model, "xy", with_image=False).where("block").any()
    refused = [("xy", BadImage, "no image token"), (f"x{block}y{block}z", BadImage, "Row 0 has 2 images")]
    if end:
        assert mapped(model, f"x{block}").where("gate")[0, -1]  # a gate at the very end is a gate
        refused += [(words, BadParameter, "incomplete or in a wrong order") for words in (f"x{block[:-1]}y", "xEIIy")]
        if not model.family.marks:
            refused += [(f"x{block}yEz", BadImage, "2 images, or such a token")]
    else:
        refused += [("xII", BadParameter, "Put some text after <image>")]
        with pytest.raises(BadParameter, match="Put some text after <image>"):
            mapped(model, "xIIx", [1, 1, 1, 0])  # what follows is padding
    for words, error, message in refused:
        with pytest.raises(error, match=message):
            mapped(model, words)
    with pytest.raises(BadImage, match="text alone, but has 2 image tokens"):
        mapped(model, "xIIy", with_image=False)
    for mask in ([1, 0, 1, 1], [0, 1, 0, 1], [0] * 4):
        with pytest.raises(BadParameter, match=r"Row 0: .* attention mask is not one run of ones"):
            mapped(model, "wxyz", mask, with_image=False)


def test_what_does_not_belong_together_is_refused(model, family):
    moved = SimpleNamespace(image_token_id=-1)
    with pytest.raises(ModelUnavailable, match="not of the same model"):
        token_map(model.family, model.processor, moved, torch.ones(1, 4).long(), torch.ones(1, 4).long())
    assert FAMILIES[family] is model.family
    # Janus makes images, too, but began as a language model.
    assert model.family.native == (family in {"chameleon", "emu3"})
    for kind in ("blip-2", "mistral3"):  # the second a relative of Pixtral, laid out in another way
        with pytest.raises(ModelUnavailable, match=f"type '{kind}' need a row in gate/families"):
            family_of(SimpleNamespace(model_type=kind, vision_config=SimpleNamespace(model_type="pixtral")))


def test_of_an_older_transformers_prompts_are_the_same_or_refused(monkeypatch):
    ids = lambda: vlm.encode(vlm.load(str(tiny_vlm("chameleon"))), None, ["What?"]).inputs["input_ids"].tolist()
    today = ids()
    monkeypatch.setattr(inputs, "OLD_PROCESSORS", True)
    monkeypatch.setattr(inputs, "PROMPT_ONLY", {})  # which they do not know: a token would follow
    assert ids() == today
    with pytest.raises(ModelUnavailable, match="not read aright by transformers"):
        vlm.load(str(tiny_vlm("emu3")))
