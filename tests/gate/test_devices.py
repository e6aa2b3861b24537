"""The tools of the gate on a model that is spread over two devices.

Pretended on a machine without GPUs: the last blocks are on "meta", where tensors have a shape and no numbers, and any
step that mixes the two devices is an error, as between two GPUs.
"""

import pytest
import torch

from peaks_and_gates import models
from peaks_and_gates.errors import ModelUnavailable
from peaks_and_gates.gate import patching, vlm
from peaks_and_gates.gate.attention import attention_shares, knockout
from peaks_and_gates.gate.split import split_prompt
from tiny_vlms import encoded, tiny_vlm


def bring(module, args, kwargs):
    """Bring what a module is given to where its weights are, as accelerate's hooks do."""
    device = next(module.parameters()).device

    def moved(value):
        if isinstance(value, tuple):
            return tuple(map(moved, value))
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return moved(args), {name: moved(value) for name, value in kwargs.items()}


@pytest.fixture
def spread(monkeypatch):
    """A model whose last two of four blocks, final norm and head are on another device than its embeddings."""
    model = vlm.load(str(tiny_vlm("chameleon")), torch.float32, "cpu")
    for module in [*model.layers[2:], model.final_norm, model.network.get_output_embeddings()]:
        module.to("meta").register_forward_pre_hook(bring, with_kwargs=True, prepend=True)
    real = {name: getattr(torch.Tensor, name) for name in ("cpu", "copy_", "nonzero", "__bool__")}
    # Between devices numbers may be copied, and asked for: on "meta" there are none, so zeros take their place.
    stand_in = {
        "cpu": lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype),
        "copy_": lambda tensor, source: real["copy_"](tensor, torch.zeros(source.shape)),
        "nonzero": lambda tensor: torch.zeros((2, tensor.ndim), dtype=torch.int64, device="meta"),
        "__bool__": lambda tensor: False,
    }
    for name, stand in stand_in.items():
        on_meta = lambda tensor, *rest, name=name, stand=stand: (
            stand(tensor, *rest) if any(t.is_meta for t in (tensor, *rest)) else real[name](tensor, *rest)
        )
        monkeypatch.setattr(torch.Tensor, name, on_meta)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("tool", ["zero", "mask", "shares", "states", "residual", "attention", "split"])
def test_a_model_over_two_devices(tool, spread):
    batch = encoded(spread)
    tokens = batch.tokens
    end, after, gate = tokens.where("end"), tokens.where("after"), patching.single_position(tokens.where("gate"))
    states = torch.ones(3, 5, 64)
    inputs, context = batch.inputs, None
    if tool in ("zero", "mask"):
        context = knockout(spread, end, after, tool, heads=[0, 2])
    elif tool == "shares":
        context = attention_shares(spread, {"end": end, "image": tokens.where("image")}, after)
    elif tool == "states":
        context = patching.read_states(spread, gate)
    elif tool == "attention":
        context = patching.patched_attention(spread, states[:, 1:], gate, 1)
    elif tool == "residual":
        context = patching.patched(spread, states[:, 3], gate, 3)
    else:
        prompt = split_prompt(spread, batch, gate)
        inputs, context = prompt.inputs(), patching.patched(spread, states[:, 3], prompt.position, 3)
    with context:
        assert spread.network(**inputs).logits.device.type == "meta"


def test_an_image_is_encoded_where_its_encoder_is(monkeypatch):
    model = vlm.load(str(tiny_vlm("chameleon")), torch.float32, "cpu")
    vqmodel, numbers = model.network.model.vqmodel.to("meta"), torch.arange(16)

    def encode(pixels, *rest):
        assert pixels.is_meta
        vqmodel.quantize.forward = lambda: (numbers, None, numbers)
        vqmodel.quantize()
        return model.network.model.vocabulary_mapping.convert_img2bpe(numbers)

    monkeypatch.setattr(model.network.model, "get_image_tokens", encode)
    del model.network.model.get_image_features  # as it was before the images were kept
    vlm.encode_once(model.network)
    with torch.inference_mode():
        model.network(**encoded(model).inputs)


def test_a_model_larger_than_a_gpu_is_spread_over_several(monkeypatch):
    """Pretended: the loader is asked for it, and what it has spread is not gathered on one device."""
    asked, load = {}, vlm.AutoModelForImageTextToText.from_pretrained
    read = lambda *source, device_map=None, **settings: asked.update(device_map=device_map) or load(*source, **settings)
    monkeypatch.setattr(vlm.AutoModelForImageTextToText, "from_pretrained", read)
    monkeypatch.setattr(models, "best_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (1000, 1000))
    monkeypatch.setattr(models, "placed", lambda network, *_: network.eval())
    vlm.load(str(tiny_vlm("llava")), torch.float32)
    assert asked == {"device_map": "auto"}
    monkeypatch.undo()
    network = vlm.load(str(tiny_vlm("llava")), torch.float32, "cpu").network
    monkeypatch.setattr(network, "to", None)
    network.hf_device_map = {"model.vision_tower": 0, "model.language_model": 1}
    assert models.placed(network, "large", torch.device("cuda"), torch.float32) is network
    network.hf_device_map["lm_head"] = "disk"
    with pytest.raises(ModelUnavailable, match="large does not fit the GPUs"):
        models.placed(network, "large", torch.device("cuda"), torch.float32)
