"""Loading vision-language models, checking them, and prompts as batches; all seven families."""

import dataclasses
import io
import json
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText

from peaks_and_gates import tiny_vlms, tokens, vlm_processors, vlms
from peaks_and_gates.errors import BadImage, BadParameter, MissingFile, ModelUnavailable, UnknownName
from peaks_and_gates.tiny_vlms import tiny_vlm
from peaks_and_gates.vlm_images import EIGHT_BITS, LARGEST, open_image
from vlm_helpers import load

FAMILIES = ["chameleon", "emu3", "janus", "llava", "llava_onevision", "pixtral", "idefics3"]
TEXTS = ["<image> What is this?", "Well, <image> is it red, or rather a dark green?", "<image> n"]
UNOPENED = {"llava_onevision", "idefics3"}  # with no token before the text
SIZES = [(64, 64), (64, 32), (20, 50)]


def picture(seed, size=(64, 64)):
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


PICTURES = [picture(i, size) for i, size in enumerate(SIZES)]


def named(family):
    return f"tiny-{family.replace('_', '-')}"


def fresh(family, **settings):
    return vlms.load(named(family), torch.float32, "cpu", **settings)


@pytest.fixture(scope="session", params=FAMILIES)
def model(request):
    return fresh(request.param)


@pytest.fixture(scope="session")
def family(model):
    return tokens.family_of(model.network.config)


def logits(model, batch):
    with torch.inference_mode():
        return model.network(**batch.inputs).logits.float()


def last_logits(model, batch):
    """(B, V), those of each row's last token."""
    return logits(model, batch)[batch.tokens.where("last")]


def alone(model, images, texts):
    rows = [vlms.encode(model, [image], [text]) for image, text in zip(images, texts, strict=True)]
    return torch.cat([last_logits(model, row) for row in rows])


def close(a, b):
    return (a - b).abs().max() < 1e-4


# --- loading ---


def test_a_model_and_its_parts(model, family):
    assert (model.n_layers, model.n_heads, model.hidden_size) == (4, 4, 64)
    assert model.text_config.num_key_value_heads == 2
    assert all(block.self_attn.config is model.text_config for block in model.layers)
    assert isinstance(model.layers, nn.ModuleList) and model.final_norm.weight.shape == (64,)
    assert (model.dtype, model.device, model.text_config._attn_implementation) == (
        torch.float32,
        torch.device("cpu"),
        "sdpa",
    )
    assert model.tokenizer is model.processor.tokenizer and model.family is tokens.FAMILIES[family]
    assert not model.network.training and not any(p.requires_grad for p in model.network.parameters())


def test_what_is_loaded_is_what_was_made(model, family, own_cache):
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    folder = tiny_vlm(family)
    assert torch.equal(torch.get_rng_state(), expected)  # a reader's own seed is left alone
    torch.manual_seed(0)
    made, _ = tiny_vlms.MAKERS[family]()
    loaded = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    weights = made.state_dict()
    assert weights.keys() == loaded.keys() == model.network.state_dict().keys()
    for name, weight in weights.items():
        assert torch.equal(weight, loaded[name]) and torch.equal(weight, model.network.state_dict()[name]), name
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert tiny_vlm(family) == folder and (folder / "model.safetensors").stat().st_mtime_ns == before
    (folder / "model.safetensors.json").unlink()  # as a run leaves it that was killed
    tiny_vlm(family)
    assert (folder / "model.safetensors").stat().st_mtime_ns > before


def test_seeds_make_different_models(own_cache):
    first, second = (AutoModelForImageTextToText.from_pretrained(tiny_vlm("llava", seed)) for seed in (0, 1))
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)
    with pytest.raises(UnknownName, match="Did you mean 'llava'"):
        tiny_vlm("lava")


@pytest.fixture
def folder(family, tmp_path):
    """A model in a folder, as a reader would have one."""
    return shutil.copytree(tiny_vlm(family), tmp_path / "model")


def test_a_folder_gives_the_model_that_was_saved(model, folder, tmp_path):
    loaded = vlms.load(str(folder), torch.float32, "cpu")
    batch = vlms.encode(model, PICTURES, TEXTS)
    assert torch.equal(logits(loaded, vlms.encode(loaded, PICTURES, TEXTS)), logits(model, batch))
    assert type(loaded.processor) is type(model.processor) and loaded.name == str(folder)
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    assert vlms.load(str(elsewhere), torch.float32, "cpu").fingerprint == loaded.fingerprint != model.fingerprint


def test_a_folder_laid_out_as_on_the_hub(model, folder):
    """Most repositories keep the image processor in a file of its own."""
    settings = json.loads((folder / "processor_config.json").read_text())
    images = settings.pop("image_processor")
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    (folder / "processor_config.json").write_text(json.dumps(settings))
    loaded = vlms.load(str(folder), torch.float32, "cpu")
    assert type(loaded.processor.image_processor) is type(model.processor.image_processor)
    inputs = vlms.encode(loaded, PICTURES, TEXTS).inputs
    for name, value in vlms.encode(model, PICTURES, TEXTS).inputs.items():
        assert torch.equal(inputs[name], value), name


def test_eager_attention_and_bfloat16(model, family):
    eager = fresh(family, attention="eager")
    batch = vlms.encode(model, PICTURES, TEXTS)
    assert eager.text_config._attn_implementation == "eager"
    assert close(last_logits(eager, batch), last_logits(model, batch))
    narrow = vlms.load(named(family), torch.bfloat16, "cpu")
    inputs = vlms.encode(narrow, PICTURES[:2], TEXTS[:2]).inputs
    kinds = {value.dtype for value in inputs.values() if value.is_floating_point()}
    assert narrow.dtype == torch.bfloat16 and kinds <= {torch.bfloat16}
    assert narrow.network(**inputs).logits.dtype == torch.bfloat16


def test_unusable_settings_are_refused():
    with pytest.raises(BadParameter, match="sdpa, eager"):
        vlms.load("tiny-llava", attention="flash_attention_2")
    with pytest.raises(UnknownName, match="Did you mean 'tiny-llava'"):
        vlms.load("tiny-lava")
    with pytest.raises(MissingFile, match="no model folder"):
        vlms.load("some/where/else")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_unknown_kind_of_model_is_refused(tmp_path):
    target = shutil.copytree(tiny_vlm("llava"), tmp_path / "model")
    edit(target / "config.json", model_type="vipllava")
    with pytest.raises(ModelUnavailable, match=r"type 'vipllava' are not known .* tokens\.FAMILIES"):
        vlms.load(str(target), torch.float32, "cpu")
    edit(target / "config.json", model_type="gate-narrower")
    with pytest.raises(ModelUnavailable, match=r"could not be loaded from .*gate-narrower.*does not recognize"):
        vlms.load(str(target), torch.float32, "cpu")


def test_the_processor_of_another_family_is_refused(tmp_path):
    target = shutil.copytree(tiny_vlm("llava"), tmp_path / "model")
    shutil.copy2(tiny_vlm("chameleon") / "processor_config.json", target)
    with pytest.raises(ModelUnavailable, match="as LlavaProcessor prepares them, but a ChameleonProcessor is stored"):
        vlms.load(str(target), torch.float32, "cpu")


def test_the_processor_of_another_family_is_refused_with_every_prompt(model, family):
    for other in set(FAMILIES) - {family}:
        mixed = dataclasses.replace(model, processor=load(other).processor)
        both = f"{model.family.name}, whose images {type(model.processor).__name__} .* {type(mixed.processor).__name__}"
        with pytest.raises(ModelUnavailable, match=both):
            vlms.encode(mixed, PICTURES[:1], TEXTS[:1])
        with pytest.raises(ModelUnavailable, match=both):
            vlms.encode(mixed, None, ["What is this?"])
        with pytest.raises(ModelUnavailable, match=f"{model.name} .*processor may be of another model: .*{both}"):
            vlms.check(mixed)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    """It has more tokens than the model has embeddings, which torch reports as an index out of range."""
    target = shutil.copytree(tiny_vlm("llava"), tmp_path / "model")
    shutil.copy2(tiny_vlm("chameleon") / "tokenizer.json", target)
    edit(target / "config.json", image_token_index=load("chameleon").network.config.image_token_id)
    with pytest.raises(ModelUnavailable, match="processor may be of another model: index out of range"):
        vlms.load(str(target), torch.float32, "cpu")


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"image_token_index": 5}, "not of the same model"),
        ("processor_config.json", {"num_additional_image_tokens": 0}, "processor may be of another model"),
        ("processor_config.json", {"patch_size": 16}, "processor may be of another model"),
        ("processor_config.json", {"vision_feature_select_strategy": "full"}, "processor may be of another model"),
    ],
)
def test_settings_of_the_processor_that_do_not_fit_are_refused(file, changes, message, tmp_path):
    target = shutil.copytree(tiny_vlm("llava"), tmp_path / "model")
    edit(target / file, **changes)
    with pytest.raises(ModelUnavailable, match=message):
        vlms.load(str(target), torch.float32, "cpu")


def test_weights_that_could_run_code_are_not_read(tmp_path):
    target = shutil.copytree(tiny_vlm("llava"), tmp_path / "model")
    torch.save(load_file(target / "model.safetensors"), target / "pytorch_model.bin")
    (target / "model.safetensors").unlink()
    with pytest.raises(MissingFile, match=r"no \.safetensors file"):
        vlms.load(str(target), torch.float32, "cpu")
    (target / "other.safetensors").touch()
    with pytest.raises(ModelUnavailable, match="could not be loaded"):
        vlms.load(str(target), torch.float32, "cpu")


def no_blocks(model):
    model.network.get_decoder().layers = None


def no_attention(model):
    del model.layers[2].self_attn


def own_config(model):
    attention = model.layers[2].self_attn
    attention.config = type(attention.config).from_dict(attention.config.to_dict())


def fewer_layers(model):
    model.text_config.num_hidden_layers = 3


def other_attention(model):
    model.text_config._attn_implementation = "flex_attention"


def not_finite(model):
    model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan


def skipped_block(model):
    model.layers[2].forward = lambda hidden_states, **_: hidden_states


def norm_runs_twice(model):
    model.layers[3].mlp.register_forward_hook(lambda module, inputs, output: model.final_norm(output))


def own_attention(model):
    """As models have it that call torch's attention themselves."""
    attention = model.layers[2].self_attn
    attention.forward = lambda hidden_states, **_: (attention.o_proj(attention.q_proj(hidden_states)), None)


def own_mask(model):
    right = model.layers[2].self_attn.forward
    model.layers[2].self_attn.forward = lambda *args, attention_mask, **rest: right(*args, attention_mask=None, **rest)


def other_head(model):
    head = nn.Linear(64, model.network.get_output_embeddings().out_features, bias=False)
    model.network.get_output_embeddings = lambda: head


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (no_blocks, "blocks are not found"),
        (no_attention, "blocks are not found"),
        (own_config, "do not share one config"),
        (fewer_layers, "do not share one config"),
        (other_attention, "attention is 'flex_attention'"),
        (not_finite, "not finite in torch.float32"),
        (skipped_block, "3 attention modules ran for 4 blocks"),
        (norm_runs_twice, "final norm ran 2 times"),
        (own_attention, r"ALL_ATTENTION_FUNCTIONS.* Blocks \[2\] of tiny-llava never asked for attention"),
        (own_mask, r"ALL_ATTENTION_FUNCTIONS.* Block 2 got no mask"),
        (other_head, "does not read the output of its final norm"),
    ],
)
def test_a_model_the_tools_cannot_take_hold_of_is_refused(fault, message):
    model = fresh("llava")
    fault(model)
    hooks = []
    for _ in range(2):
        with pytest.raises(ModelUnavailable, match=f"tiny-llava .LlavaForCond.*. cannot be used.*{message}"):
            vlms.check(model)
        hooks.append(sum(len(module._forward_hooks) for module in model.network.modules()))
    assert hooks[0] == hooks[1]  # transformers leaves its own at the first pass, the check none


# --- names ---


def test_every_name_in_the_list_can_be_described(monkeypatch):
    monkeypatch.setattr(vlms, "hub_revision", lambda repo: "f" * 40)
    vlms._described.cache_clear()
    for name in vlms.VLMS:
        described = vlms.describe(name)
        assert described.get("template", "{prompt}").count("{prompt}") == 1
        if described["provider"] == "hub":
            assert re.fullmatch("[0-9a-f]{40}", described["revision"]) and described["repo"].count("/") == 1
        elif described["provider"] == "mini":
            assert described["family"] in FAMILIES and re.fullmatch("[0-9a-f]{16}", described["sha256"])
        else:
            assert described["family"] in tiny_vlms.MAKERS and named(described["family"]) == name
    assert vlms.describe("chameleon-7b")["revision"] == "f" * 40  # not pinned: main's commit, and recorded
    vlms._described.cache_clear()


def test_a_repository_is_read_with_its_own_template(monkeypatch):
    monkeypatch.setattr(vlms, "hub_revision", lambda repo: "a" * 40)
    found = vlms.describe("llava-hf/llava-1.5-7b-hf@" + "b" * 40)
    assert found == vlms.describe("llava-1.5-7b") | {"revision": "b" * 40}
    assert vlms.describe("someone/something") == {
        "provider": "hub",
        "repo": "someone/something",
        "revision": "a" * 40,
    }
    vlms._described.cache_clear()


def test_what_is_described_cannot_be_changed_by_a_caller():
    vlms.describe("tiny-llava")["provider"] = "hub"
    assert vlms.describe("tiny-llava")["provider"] == "tiny"


def test_a_model_the_hub_does_not_give(monkeypatch):
    def refuse(*_, **__):
        raise OSError("401 Client Error: Gated repo")

    monkeypatch.setattr(vlms.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ModelUnavailable, match="mistral-community/pixtral-12b is gated"):
        vlms.load("pixtral-12b")


def test_the_parts_of_a_hub_model_are_asked_for_at_one_commit(monkeypatch):
    asked = []

    def record(kind):
        right = kind.from_pretrained.__func__
        local = str(tiny_vlm("llava"))

        def load(cls, source, *args, revision=None, **settings):
            if source != local:  # each part asks for the config again
                asked.append((kind.__name__, source, revision))
            return right(cls, local, *args, **settings)

        monkeypatch.setattr(kind, "from_pretrained", classmethod(load))

    for kind in (vlms.AutoConfig, vlms.AutoModelForImageTextToText):
        record(kind)
    for kind in (vlm_processors.AutoImageProcessor, vlm_processors.AutoTokenizer):
        record(kind)
    settings = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    monkeypatch.setattr(
        vlm_processors.LlavaProcessor,
        "get_processor_dict",
        lambda source, revision: asked.append(("settings", source, revision)) or (settings, {}),
    )
    model = vlms.load("llava-1.5-7b", torch.float32, "cpu")
    pinned = ("llava-hf/llava-1.5-7b-hf", vlms.VLMS["llava-1.5-7b"]["revision"])
    assert len(asked) == 5 and {tuple(call[1:]) for call in asked} == {pinned}
    assert vlms.encode(model, PICTURES[:1], ["<image> What?"]).texts == ("USER: <image> What? ASSISTANT:",)


# --- prompts ---


@pytest.mark.parametrize("side", ["left", "right"])
def test_neither_padding_nor_batch_mates_change_a_prompt(model, side):
    batch = vlms.encode(model, PICTURES, TEXTS, side)
    assert batch.tokens.where("padding").any()
    assert close(last_logits(model, batch), alone(model, PICTURES, TEXTS))


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_count_from_the_first_token_of_each_prompt(model, side):
    batch = vlms.encode(model, PICTURES, TEXTS, side)
    prompts = batch.tokens.where("prompt")
    for positions, prompt in zip(batch.inputs["position_ids"], prompts, strict=True):
        assert positions[prompt].tolist() == list(range(int(prompt.sum())))
    inputs = batch.inputs | {"position_ids": batch.inputs["position_ids"] * 2}
    stretched = dataclasses.replace(batch, inputs=inputs)  # the network must read what it is given
    assert not close(last_logits(model, stretched), last_logits(model, batch))


@pytest.mark.parametrize("fault", ["no mask", "shifted mask"])
def test_a_fault_in_the_mask_is_seen(model, fault):
    batch = vlms.encode(model, PICTURES, TEXTS, "left")
    mask = batch.inputs["attention_mask"]
    wrong = {"no mask": torch.ones_like(mask), "shifted mask": mask.roll(-1, 1)}[fault]
    broken = dataclasses.replace(batch, inputs=batch.inputs | {"attention_mask": wrong})
    assert not close(last_logits(model, broken), alone(model, PICTURES, TEXTS))


def test_images_padded_to_one_size_would_change_the_codes_of_emu3(monkeypatch):
    expected = alone(fresh("emu3"), PICTURES, TEXTS)
    monkeypatch.setattr(vlms, "encode_once", lambda network: None)
    model = fresh("emu3")
    assert not close(last_logits(model, vlms.encode(model, PICTURES, TEXTS)), expected)


@pytest.mark.parametrize("family", ["chameleon", "emu3"])
def test_an_image_is_encoded_once_and_alone(family, monkeypatch):
    shown = [picture(0), picture(1), picture(0), picture(2)]
    monkeypatch.setattr(vlms, "encode_once", lambda network: None)
    plain = fresh(family)  # images of one size: nothing is padded
    expected = last_logits(plain, vlms.encode(plain, shown, TEXTS[:1] * 4))
    monkeypatch.undo()
    model = fresh(family)
    seen = []
    encode = model.network.model.vqmodel.encode
    monkeypatch.setattr(
        model.network.model.vqmodel,
        "encode",
        lambda pixels, *rest, **more: seen.append(len(pixels)) or encode(pixels, *rest, **more),
    )
    for _ in range(2):
        assert close(last_logits(model, vlms.encode(model, shown, TEXTS[:1] * 4)), expected)
    assert seen == [1, 1, 1]


def test_what_is_generated_behind_a_batch(model):
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    batch = vlms.encode(model, PICTURES, TEXTS)
    together = model.network.generate(**batch.inputs, **settings)[:, -4:]
    for row, (image, text) in enumerate(zip(PICTURES, TEXTS, strict=True)):
        single = model.network.generate(**vlms.encode(model, [image], [text]).inputs, **settings)
        assert single[0, -4:].tolist() == together[row].tolist()
    image = model.tokenizer.convert_tokens_to_ids(model.processor.image_token)
    assert model.network.generation_config.suppress_tokens == [image]  # as long as the weights are random


def test_another_image_gives_other_logits(model):
    batch = vlms.encode(model, [picture(0), picture(1)], TEXTS[:1] * 2)
    assert torch.equal(batch.inputs["input_ids"][0], batch.inputs["input_ids"][1])
    first, second = last_logits(model, batch)
    assert (first - second).abs().max() > 1


@pytest.mark.parametrize("family", ["chameleon", "emu3"])
def test_another_image_gives_other_codes(family):
    model = fresh(family)
    inputs = vlms.encode(model, [picture(i) for i in range(4)], TEXTS[:1] * 4).inputs
    sizes = {"image_sizes": inputs["image_sizes"]} if family == "emu3" else {}
    codes = model.network.model.get_image_tokens(inputs["pixel_values"], **sizes).view(4, -1)
    for i in range(4):
        assert len(codes[i].unique()) >= 5  # an encoder that collapses writes one code all over
        assert all((codes[i] != codes[j]).float().mean() > 0.25 for j in range(i))


def test_a_prompt_of_text_alone(model, family):
    batch = vlms.encode(model, None, ["What is this?", "n"])
    assert not batch.tokens.where("block").any()
    assert batch.tokens.where("text").sum(1).tolist() == [
        n + (family not in {"llava_onevision", "idefics3"}) for n in (13, 1)
    ]
    assert torch.isfinite(logits(model, batch)).all() and "pixel_values" not in batch.inputs


def test_nothing_is_written_behind_the_prompt(model):
    batch = vlms.encode(model, PICTURES, TEXTS)
    ids = batch.inputs["input_ids"]
    ends = [
        model.tokenizer.decode(row[prompt][-3:]) for row, prompt in zip(ids, batch.tokens.where("prompt"), strict=True)
    ]
    assert ends[:2] == ["is?", "en?"] and ends[2].endswith(" n")


def test_a_template_goes_around_the_prompt(model):
    asking = dataclasses.replace(model, template="USER: {prompt} ASSISTANT:")
    batch = vlms.encode(asking, PICTURES[:1], ["{a} <image> {prompt}?"])
    assert batch.texts == (f"USER: {{a}} {model.processor.image_token} {{prompt}}? ASSISTANT:",)
    bare = vlms.encode(model, PICTURES[:1], ["USER: {a} <image> {prompt}? ASSISTANT:"])
    assert torch.equal(batch.inputs["input_ids"], bare.inputs["input_ids"])


def test_a_text_is_opened_once(model, family):
    starts = lambda batch: (batch.inputs["input_ids"] == model.tokenizer.bos_token_id).sum().item()
    assert starts(vlms.encode(model, PICTURES[:1], TEXTS[:1])) == (family not in UNOPENED)
    opening = dataclasses.replace(model, template="<s>[INST]{prompt}")
    if family == "emu3":  # its processor writes the token itself, whatever it is told
        with pytest.raises(BadParameter, match="Text 0 begins with <s> twice"):
            vlms.encode(opening, PICTURES[:1], TEXTS[:1])
    else:
        assert starts(vlms.encode(opening, PICTURES[:1], TEXTS[:1])) == 1
    if family not in UNOPENED:
        with pytest.raises(BadParameter, match="Text 1 begins with <s> twice"):
            vlms.encode(model, PICTURES[:2], [TEXTS[0], "<s>" + TEXTS[0]])


@pytest.mark.parametrize(
    ("images", "texts", "error", "message"),
    [
        (PICTURES[:1], ["What is this?"], BadImage, "Text 0 has no <image>, but an image was given"),
        (PICTURES[:1], ["<image> or <image>?"], BadImage, "Text 0 has 2 <image>"),
        (PICTURES[:2], ["<image> What?", "And?"], BadImage, "Text 1 has no <image>, but an image was given"),
        (PICTURES[:2], ["<image> What?", "<image><image> And?"], BadImage, "Text 1 has 2 <image>"),
        (None, ["<image> What?"], BadImage, r"Text 0 .* no images were given.* Give an image for every text"),
        (None, ["What?", "<image> What?"], BadImage, "Text 1 has <image>, but no images were given"),
        ([PICTURES[:2]], ["<image> What?"], BadImage, "Image 0 must be a PIL image .* not a list"),
        ([PICTURES[0], None], ["<image> What?"] * 2, BadImage, "Image 1 must be a PIL image .* not a NoneType"),
        ([PICTURES[0], Image.new("F", (8, 8))], ["<image> What?"] * 2, BadImage, "Image 1 has pixels of the kind F"),
        (PICTURES[:1], ["<image> What?"] * 2, BadParameter, "as many images as texts"),
        (PICTURES[:2], ["<image> What?"], BadParameter, "as many images as texts"),
        ([], ["<image> What?"], BadParameter, "as many images as texts"),
        (PICTURES[0], ["<image> What?"], BadParameter, "as many images as texts"),
        ([], [], BadParameter, "at least one text"),
        (None, [], BadParameter, "at least one text"),
        (PICTURES[:1], "<image> What?", BadParameter, "at least one text"),
    ],
)
def test_refused_prompts(model, images, texts, error, message):
    with pytest.raises(error, match=message):
        vlms.encode(model, images, texts)


def test_more_refused_prompts(model):
    with pytest.raises(BadParameter, match="left or right"):
        vlms.encode(model, PICTURES[:1], ["<image> What?"], "middle")
    if model.processor.image_token != "<image>":
        with pytest.raises(BadParameter, match="write <image> for the image"):
            vlms.encode(model, PICTURES[:1], [f"<image> {model.processor.image_token}"])
    if model.family.end is None:
        with pytest.raises(BadParameter, match="Put some text after <image>"):
            vlms.encode(model, PICTURES[:1], ["What is <image>"])
    else:
        with pytest.raises(BadImage, match="2 images, or such a token"):
            vlms.encode(model, PICTURES[:1], ["<image> and " + getattr(model.processor, model.family.end)])


@pytest.mark.parametrize("family", ["emu3", "pixtral"])
def test_an_image_too_long_for_the_processor_is_refused(family):
    message = f"processor of tiny-{family} refuses this batch: .* in pixels: 64 x 64, 2000 x 4. .*far wider than long"
    with pytest.raises(BadImage, match=message):
        vlms.encode(fresh(family), [PICTURES[0], Image.new("RGB", (2000, 4))], ["<image> What?"] * 2)


def test_a_text_without_a_token_is_refused(model, family):
    if family in UNOPENED:
        for texts, row in (([""], 0), (["What?", ""], 1)):
            with pytest.raises(BadParameter, match=f"Row {row}: .* the prompt is empty"):
                vlms.encode(model, None, texts)
    else:
        assert vlms.encode(model, None, [""]).tokens.where("text").sum() == 1  # the start of the text


# --- images ---


def test_files_and_images_are_one(model, tmp_path):
    PICTURES[0].save(tmp_path / "a.png")
    batches = [
        vlms.encode(model, [image], TEXTS[:1]) for image in (PICTURES[0], tmp_path / "a.png", str(tmp_path / "a.png"))
    ]
    for batch in batches[1:]:
        assert all(torch.equal(batch.inputs[name], value) for name, value in batches[0].inputs.items())


def pixels(image):
    return np.asarray(open_image(image)).tolist()


def test_every_kind_of_pixel_becomes_rgb():
    half = np.zeros((8, 8, 4), np.uint8)
    half[:, :4] = (200, 0, 0, 255)  # the rest is transparent black
    red_on_white = [[[200, 0, 0]] * 4 + [[255, 255, 255]] * 4] * 8
    assert pixels(Image.fromarray(half)) == red_on_white
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([200, 0, 0, 0, 0, 0])
    palette.paste(0, (0, 0, 4, 8))
    palette.info["transparency"] = 1
    assert pixels(palette) == red_on_white
    palette.info.clear()
    assert pixels(palette) == [[[200, 0, 0]] * 4 + [[0, 0, 0]] * 4] * 8
    assert pixels(Image.new("L", (4, 4), 90)) == [[[90] * 3] * 4] * 4
    assert pixels(Image.new("1", (4, 4), 1)) == [[[255] * 3] * 4] * 4
    assert pixels(Image.new("CMYK", (4, 4), (0, 255, 255, 0))) == [[[255, 0, 0]] * 4] * 4
    for mode in EIGHT_BITS:
        found = open_image(Image.new(mode, (8, 8)))
        assert (found.mode, found.size) == ("RGB", (8, 8))


def test_every_kind_of_pixel_in_a_file(tmp_path):
    colour = (204, 51, 51)  # one of the palette's
    for kind in ("RGBA.png", "P.png", "P.gif", "CMYK.jpg", "CMYK.tiff", "RGB.jpg"):
        mode = kind.partition(".")[0]
        Image.new("RGB", (16, 16), colour).convert(mode).save(tmp_path / kind)
        assert Image.open(tmp_path / kind).mode == mode
        assert np.abs(np.asarray(open_image(tmp_path / kind), int) - colour).max() < 6, kind  # JPEG is not exact


def test_a_photograph_is_turned_upright(tmp_path):
    image = Image.new("RGB", (8, 6), "white")
    image.putpixel((0, 0), (0, 0, 0))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held on its side
    image.save(tmp_path / "a.png", exif=turned)
    upright = open_image(tmp_path / "a.png")
    assert upright.size == (6, 8) and upright.getpixel((5, 0)) == (0, 0, 0)


def as_bytes(kind, **settings):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, kind, **settings)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_truncated_file_is_refused(kind, tmp_path):
    """Wherever it is cut: decoders stumble in many ways."""
    whole = as_bytes(kind)
    path = tmp_path / "cut"
    for share in np.linspace(0, 0.95, 60):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(BadImage, match=str(path)):
            open_image(path)


def test_a_damaged_file_is_refused(tmp_path):
    whole = as_bytes("GIF")
    path = tmp_path / "damaged.gif"
    path.write_bytes(whole[:-1] + b"," + bytes(4))  # where the file should end, the head of one more frame begins
    with pytest.raises(BadImage, match=r"damaged.gif cannot be read.*Save it anew"):
        open_image(path)
    exif = b"Exif\x00\x00" + b"XX*\x00" + bytes(20)
    path.write_bytes(as_bytes("WEBP", exif=exif))
    with pytest.raises(BadImage, match=r"damaged.gif cannot be read.*Save it anew"):
        open_image(path)


def claiming(size):
    """A PNG whose header claims a size, without the pixels of it."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def test_images_without_pixels_or_with_too_many_are_refused(tmp_path):
    path = tmp_path / "a.png"
    assert 9435**2 > LARGEST > 9433**2
    for size, message in [
        ((0, 0), r"a.png is of no format that PIL knows, or is no image"),
        ((0, 50), r"a.png is of no format that PIL knows, or is no image"),
        ((9435, 9435), r"a.png is too large: 9435 x 9435 pixels. Scale it down below 89 megapixels"),
        ((60_000, 60_000), r"a.png is too large: .*decompression bomb.* Scale it down below 89 megapixels"),
    ]:
        path.write_bytes(claiming(size))
        with pytest.raises(BadImage, match=message):
            open_image(path)
    path.write_bytes(claiming((9433, 9433)))
    with pytest.raises(BadImage, match=r"cannot be read: .*truncated"):  # not too large, but the pixels are missing
        open_image(path)
    for size in ((0, 0), (0, 50), (50, 0)):
        with pytest.raises(BadImage, match=f"is {size[0]} x {size[1]} pixels; each side must be at least 4"):
            open_image(Image.new("RGB", size))


@pytest.mark.parametrize(("kind", "what"), [("GIF", "gif"), ("PNG", "apng"), ("WEBP", "webp"), ("TIFF", "pages")])
def test_images_of_several_frames_are_refused(kind, what, tmp_path):
    path = tmp_path / what
    picture(0).save(path, kind, save_all=True, append_images=[picture(1), picture(2)])
    for image in (path, Image.open(path)):
        with pytest.raises(BadImage, match=r"animated or has pages: 3 frames. Save the one that is meant"):
            open_image(image)
    picture(0).save(path, kind)
    assert open_image(path).size == (64, 64)


def test_refused_images(tmp_path):
    with pytest.raises(BadImage, match="There is no image"):
        open_image(tmp_path / "nothing.png")
    for text in ("no image", ""):
        (tmp_path / "text.png").write_text(text)
        with pytest.raises(BadImage, match="no format that PIL knows"):
            open_image(tmp_path / "text.png")
    PICTURES[0].save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    with pytest.raises(BadImage, match="cannot be read"):
        open_image(tmp_path / "cut.png")
    with pytest.raises(BadImage, match="cannot be read"):
        open_image(tmp_path)
    picture(0).save(tmp_path / "moving.gif", save_all=True, append_images=[picture(1)])
    with pytest.raises(BadImage, match="2 frames"):
        open_image(tmp_path / "moving.gif")
    for mode in ("I;16", "I", "F", "La"):
        with pytest.raises(BadImage, match=f"pixels of the kind {mode}; save it as RGB of 8 bits a channel"):
            open_image(Image.new(mode, (8, 8)))
    Image.new("I;16", (8, 8), 40_000).save(tmp_path / "deep.png")
    with pytest.raises(BadImage, match=r"deep.png has pixels of the kind I;16; save it as RGB"):
        open_image(tmp_path / "deep.png")
    for size in ((3, 50), (50, 1)):
        with pytest.raises(BadImage, match="at least 4"):
            open_image(Image.new("RGB", size))
    with pytest.raises(BadImage, match="not a ndarray"):
        open_image(np.zeros((8, 8, 3), np.uint8))


def test_the_smallest_image_that_is_taken(model):
    for size in ((4, 4), (4, 40), (40, 4)):
        batch = vlms.encode(model, [picture(0, size)], TEXTS[:1])
        assert torch.isfinite(logits(model, batch)).all()
