"""Loading vision-language models, checking them, and prompts as batches; all seven families."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peaks_and_gates import models
from peaks_and_gates.errors import BadImage, BadParameter, MissingFile, ModelUnavailable, UnknownName
from peaks_and_gates.gate import experiment, inputs, vlm
from peaks_and_gates.gate.experiment import Experiment
from peaks_and_gates.gate.pictures import Picture
from peaks_and_gates.gate.tokens import family_of
from tiny_vlms import FAMILIES, close, load, logits, picture, tiny_vlm

TEXTS = ["<image> What is this?", "Well, <image> is it red, or rather a dark green?", "<image> n"]
UNOPENED = {"llava_onevision", "idefics3"}  # with no token before the text
PICTURES = [picture(i, size) for i, size in enumerate([(64, 64), (64, 32), (20, 50)])]


@pytest.fixture(params=FAMILIES)
def model(request):
    return load(request.param)


@pytest.fixture
def family(model):
    return family_of(model.network.config)


def last_logits(model, batch):
    """(B, V), those of each row's last token."""
    return logits(model, batch)[batch.tokens.where("last")]


# --- loading ---


def test_bfloat16(family):
    narrow = load(family, dtype=torch.bfloat16)
    frequencies = [buffer for name, buffer in narrow.network.named_buffers() if name.endswith("inv_freq")]
    assert {buffer.dtype for buffer in frequencies} == {torch.float32}
    given = vlm.encode(narrow, PICTURES[:2], TEXTS[:2]).inputs
    assert {value.dtype for value in given.values() if value.is_floating_point()} <= {torch.bfloat16}
    assert narrow.network(**given).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"model_type": "vipllava"}, r"type 'vipllava' need a row"),
        ("config.json", {"model_type": "gate-narrower"}, r"could not be loaded from .*gate-narrower"),
        ("config.json", {"image_token_index": 5}, "not of the same model"),
        ("config.json", {"wiring": "gate"}, "Did you mean 'gated'"),
        ("config.json", {"multimodal_projector_bias": False}, r"of another model.*linear_1\.bias"),
        ("processor_config.json", {"processor_class": "ChameleonProcessor"}, "holds a ChameleonProcessor"),
        ("processor_config.json", {"vision_feature_select_strategy": "full"}, "processor may be of another model"),
    ],
)
def test_a_folder_whose_parts_do_not_fit_is_refused(file, changes, message, tmp_path):
    path = shutil.copytree(tiny_vlm("llava"), tmp_path / "model") / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises((ModelUnavailable, UnknownName), match=message):
        vlm.load(str(path.parent), torch.float32, "cpu")


def test_weights_that_could_run_code_are_not_read(tmp_path):
    target = shutil.copytree(tiny_vlm("llava"), tmp_path / "model")
    torch.save(load_file(target / "model.safetensors"), target / "pytorch_model.bin")
    (target / "model.safetensors").unlink()
    with pytest.raises(MissingFile, match=r"no \.safetensors file"):
        vlm.load(str(target), torch.float32, "cpu")


def own_config(model):
    attention = model.layers[2].self_attn
    attention.config = type(attention.config).from_dict(attention.config.to_dict())


def own_attention(model):
    """As models have it that call torch's attention themselves."""
    attention = model.layers[2].self_attn
    attention.forward = lambda hidden_states, **_: (attention.o_proj(attention.q_proj(hidden_states)), None)


def norm_runs_twice(model):
    model.layers[3].mlp.register_forward_hook(lambda module, inputs, output: model.final_norm(output))


def another_attention(model):
    ALL_ATTENTION_FUNCTIONS.register("another", ALL_ATTENTION_FUNCTIONS["sdpa"])
    model.text_config._attn_implementation = "another"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda model: setattr(model.network.get_decoder(), "layers", None), "blocks are not at"),
        (own_config, "share one config"),
        (lambda model: setattr(model.text_config, "num_hidden_layers", 3), "share one config"),
        (another_attention, "'another'"),
        (lambda model: model.layers[1].mlp.up_proj.weight.fill_(torch.nan), "not finite in torch.float32"),
        (lambda model: setattr(model.layers[2], "forward", lambda states, **_: states), "3 attention modules"),
        (norm_runs_twice, "final norm 2 times"),
        (own_attention, r"ALL_ATTENTION_FUNCTIONS.* Blocks \[2\] of .* never asked for attention"),
        (
            lambda model: setattr(model.network, "get_output_embeddings", lambda: torch.nn.Linear(64, 260)),
            "does not read the output",
        ),
    ],
)
def test_a_model_the_tools_cannot_take_hold_of_is_refused(fault, message):
    model = vlm.load(str(tiny_vlm("llava")), torch.float32, "cpu")
    fault(model)
    hooks = []
    for _ in range(2):
        with pytest.raises(ModelUnavailable, match=f"LlavaForCond.*. cannot be used.*{message}"):
            vlm.check(model)
        hooks.append(sum(len(module._forward_hooks) for module in model.network.modules()))
    assert hooks[0] == hooks[1]  # transformers leaves its own at the first pass, the check none


@pytest.mark.parametrize("family", ["chameleon", "emu3", "llava"])
def test_a_model_that_is_not_shown_its_images_is_refused(family):
    model = vlm.load(str(tiny_vlm(family)), torch.float32, "cpu")
    run = model.network.forward
    model.network.forward = lambda pixel_values=None, **inputs: run(**inputs)  # as versions of transformers did
    with pytest.raises(ModelUnavailable, match="two images lead to the same logits"):
        vlm.check(model)


@pytest.mark.parametrize("family", ["chameleon", "emu3"])
def test_numbers_of_the_codebook_are_not_taken_for_tokens(family, monkeypatch):
    """Most are codes of the vocabulary, too, only of other images: nothing else would show it."""
    folder = str(tiny_vlm(family))
    model = vlm.load(folder, torch.float32, "cpu")
    mapping = type(model.network.model.vocabulary_mapping)
    monkeypatch.setattr(mapping, "convert_img2bpe", lambda self, numbers: numbers)
    with pytest.raises(ModelUnavailable, match="not embedded as the image tokens of the vocabulary"):
        vlm.load(folder, torch.float32, "cpu")
    for _ in range(2):  # nor when the image is shown again
        with pytest.raises(ModelUnavailable, match="not embedded"):
            logits(model, vlm.encode(model, [picture(7)], ["<image> a"]))


# --- names ---


def test_every_name_in_the_list_can_be_described(monkeypatch):
    monkeypatch.setattr(models, "hub_revision", lambda repo: "f" * 40)
    for name in [name for name, entry in models.MODELS.items() if "family" in entry]:
        described = vlm.describe(name)
        assert described["family"] in FAMILIES and described.get("template", "{prompt}").count("{prompt}") == 1
        if described["provider"] == "hub":
            assert re.fullmatch("[0-9a-f]{40}", described["revision"]) and described["repo"].count("/") == 1
    at_commit = vlm.describe("llava-hf/llava-1.5-7b-hf@" + "b" * 40)
    assert at_commit == vlm.describe("llava-1.5-7b") | {"revision": "b" * 40}
    for name, message in (("mini-gate", "mean 'mini-gated'"), ("smollm2-135m-instruct", "reads no pictures")):
        with pytest.raises((UnknownName, ModelUnavailable), match=message):
            vlm.load(name)


def test_the_parts_of_a_hub_model_are_asked_for_at_one_commit(monkeypatch):
    calls, local = [], str(tiny_vlm("llava"))

    def record(kind):
        right = kind.from_pretrained.__func__

        def load(cls, source, *args, revision=None, **settings):
            if source != local:  # each part asks for the config again
                calls.append((source, revision, settings.get("trust_remote_code")))
            return right(cls, local, *args, **settings)

        monkeypatch.setattr(kind, "from_pretrained", classmethod(load))

    for kind in (vlm.AutoConfig, vlm.AutoModelForImageTextToText, inputs.AutoImageProcessor, inputs.AutoTokenizer):
        record(kind)
    settings = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    stored = lambda source, revision: calls.append((source, revision, False)) or (settings, {})
    monkeypatch.setattr(inputs.processor_class("llava"), "get_processor_dict", stored)
    model = vlm.load("llava-1.5-7b", torch.float32, "cpu")
    assert calls == [("llava-hf/llava-1.5-7b-hf", models.MODELS["llava-1.5-7b"]["revision"], False)] * 5
    assert vlm.encode(model, PICTURES[:1], ["<image> What?"]).texts == ("USER: <image> What? ASSISTANT:",)


# --- prompts ---


@pytest.mark.parametrize("side", ["left", "right"])
def test_neither_padding_nor_batch_mates_change_a_prompt(model, side):
    batch = vlm.encode(model, PICTURES, TEXTS, side)
    assert batch.tokens.where("padding").any()
    alone = [last_logits(model, vlm.encode(model, PICTURES[i : i + 1], TEXTS[i : i + 1])) for i in range(3)]
    assert close(last_logits(model, batch), torch.cat(alone))
    for positions, prompt in zip(batch.inputs["position_ids"], batch.tokens.where("prompt"), strict=True):
        assert positions[prompt].tolist() == list(range(int(prompt.sum())))
    stretched = batch.inputs | {"position_ids": batch.inputs["position_ids"] * 2}
    stretched = dataclasses.replace(batch, inputs=stretched)  # the network must read what it is given
    assert not close(last_logits(model, stretched), last_logits(model, batch))


@pytest.mark.parametrize("family", ["chameleon", "emu3"])
def test_an_image_is_encoded_once_and_alone(family, monkeypatch):
    images = [picture(0), picture(1), picture(0), picture(2)]
    fresh = lambda: vlm.load(str(tiny_vlm(family)), torch.float32)
    monkeypatch.setattr(vlm, "encode_once", lambda network: None)
    plain = fresh()  # images of one size: nothing is padded
    expected = last_logits(plain, vlm.encode(plain, images, TEXTS[:1] * 4))
    monkeypatch.undo()
    model, n_encoded = fresh(), []
    encode = model.network.model.vqmodel.encode
    count = lambda pixels, *rest, **more: n_encoded.append(len(pixels)) or encode(pixels, *rest, **more)
    monkeypatch.setattr(model.network.model.vqmodel, "encode", count)
    for _ in range(2):
        assert close(last_logits(model, vlm.encode(model, images, TEXTS[:1] * 4)), expected)
    assert n_encoded == [1, 1, 1]


def test_another_image_gives_other_logits(model):
    batch = vlm.encode(model, [picture(0), picture(1)], TEXTS[:1] * 2)
    assert torch.equal(batch.inputs["input_ids"][0], batch.inputs["input_ids"][1])
    first, second = last_logits(model, batch)
    assert (first - second).abs().max() > 1


def test_a_prompt_of_text_alone(model, family):
    batch = vlm.encode(model, None, ["What is this?", "n"])
    assert not batch.tokens.where("block").any() and "pixel_values" not in batch.inputs
    assert batch.tokens.where("text").sum(1).tolist() == [n + (family not in UNOPENED) for n in (13, 1)]


def test_a_prompt_ends_where_its_text_ends_and_opens_once(model, family):
    ids = vlm.encode(model, PICTURES[:1], TEXTS[:1]).inputs["input_ids"][0]
    assert model.tokenizer.decode(ids[-3:]) == "is?"
    assert (ids == model.tokenizer.bos_token_id).sum() == (family not in UNOPENED)
    opening = dataclasses.replace(model, template="<s>[INST]{prompt}")
    if family == "emu3":  # its processor writes the token itself, whatever it is told
        with pytest.raises(BadParameter, match="Text 0 begins with <s> twice"):
            vlm.encode(opening, PICTURES[:1], TEXTS[:1])
    else:
        ids = vlm.encode(opening, PICTURES[:1], TEXTS[:1]).inputs["input_ids"]
        assert (ids == model.tokenizer.bos_token_id).sum() == 1


def test_a_text_to_be_continued_ends_in_its_last_word(model, monkeypatch):
    """A chat template goes around questions and captions only, in every family."""
    chat = dataclasses.replace(model, template="USER: {prompt} ASSISTANT:")
    monkeypatch.setattr(experiment, "_loaded", lambda *_: chat)
    shown = [Picture(b"", "a", question="What?")]
    monkeypatch.setattr(Picture, "image", picture(0))
    ends = {}
    for task in ("classes", "questions", "captions", "image, then text"):
        texts = ["<image>So a"] if task == "image, then text" else None
        [(_, batch, _)] = Experiment("any", source="paper").batches(task, shown, texts)
        ends[task] = model.tokenizer.decode(batch.inputs["input_ids"][0])[-10:]
    assert ends["questions"] == ends["captions"] == "ASSISTANT:"
    assert ends["classes"] == "nimal is a" and ends["image, then text"].endswith("So a")
    for name in ("chameleon-30b", "facebook/chameleon-30b", "facebook/chameleon-30b@" + "a" * 40):
        [(_, batch, _)] = Experiment(name, source="paper").batches("classes", shown)
        assert "Answer the question using" in batch.texts[0] and batch.texts[0].endswith("This animal is a")
    [(_, batch, _)] = Experiment("BAAI/Emu3-Chat-hf", source="paper").batches("captions", shown)
    assert "Describe this picture briefly" in batch.texts[0]


@pytest.mark.parametrize(
    ("images", "texts", "error", "message"),
    [
        (PICTURES[:1], ["What is this?"], BadImage, "Text 0 has 0 <image>, where 1 belongs"),
        (PICTURES[:2], ["<image> What?", "<image><image> And?"], BadImage, "Text 1 has 2 <image>"),
        (PICTURES[:1], ["<image> What?"] * 2, BadParameter, "one image for each"),
        (None, "What?", BadParameter, "a list of texts"),
        (PICTURES[:1], ["<image> and [IMG_END]"], BadImage, "2 images, or such a token"),
    ],
)
def test_refused_prompts(images, texts, error, message):
    with pytest.raises(error, match=message):
        vlm.encode(load("pixtral"), images, texts)
