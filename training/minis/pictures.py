"""Pictures through the image tokenizer of a native mini, and from the mini itself: `data/mini-pictures.parquet`.

And the scenes of the page that runs minis in the browser: `data/page-scenes.parquet`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from peaks_and_gates.gate import vlm
from peaks_and_gates.gate.experiment import Experiment
from training.common import load_or_train
from training.scenes.build import png
from training.scenes.drawing import draw
from training.scenes.scene import sample
from training.scenes.words import caption

from . import image_tokenizer, models


def pictures(name: str = "mini-native-0", n: int = 7, seed: int = 0) -> pd.DataFrame:
    """n test scenes, the same from their image tokens, and pictures that a native mini makes of their captions.

    Rows: kind ("drawn", "seen", "imagined"), caption, png (bytes).
    """
    model = vlm.load(name)
    scenes = sample("test", n, seed)
    captions = [caption(scene) for scene in scenes]
    originals = [draw(scene, image_tokenizer.SIDE) for scene in scenes]
    pixels = model.processor.image_processor(originals, return_tensors="pt")["pixel_values"]  # (n, 3, 64, 64)
    with torch.inference_mode():
        codes = model.network.model.vqmodel.encode(pixels.to(model.device), return_dict=True).image_tokens
    seen = from_codes(codes.view(n, -1).cpu())  # (n, 64)
    by_kind = {"drawn": originals, "seen": seen, "imagined": from_codes(imagined(model, captions, seed))}
    return pd.DataFrame([
        {"kind": kind, "caption": text, "png": png(picture)}
        for kind, row in by_kind.items()
        for text, picture in zip(captions, row, strict=True)
    ])  # fmt: skip


@torch.inference_mode()
def imagined(model: vlm.VisionLanguageModel, texts: Sequence[str], seed: int = 0) -> Tensor:
    """Image tokens that a native mini writes after captions, drawn at random as it expects them: (texts, 64) int64.

    The model's own head forbids image tokens in an answer, so they are drawn from its states and its embeddings.
    """
    network = model.network
    ids_of_codes = model.tokenizer.convert_tokens_to_ids(models.code_names(network.config.vq_config.num_embeddings))
    table = network.get_output_embeddings().weight[ids_of_codes]  # (codes, D)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for text in texts:
        ids = model.tokenizer(f"{text}<begin>", return_tensors="pt")["input_ids"].to(model.device)  # (1, T)
        cache, row = None, []
        for _ in range(image_tokenizer.N_IMAGE):
            output = network.model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            probabilities = (output.last_hidden_state[0, -1] @ table.T).float().softmax(-1).cpu()  # (codes,)
            row.append(torch.multinomial(probabilities, 1, generator=generator))
            ids = (row[-1] + ids_of_codes[0])[None].to(model.device)  # (1, 1)
        rows.append(torch.cat(row))
    return torch.stack(rows)


def from_codes(codes: Tensor) -> list[Image.Image]:
    """Pictures of codes (N, 64) by the decoder of the book's image tokenizer."""
    settings = models.recipes("laptop")["codebook"]
    weights = load_or_train(settings, models.minis_folder("laptop") / "codebook.safetensors", image_tokenizer.train)
    return image_tokenizer.decoded(weights, settings, codes)


@torch.inference_mode()
def page_scenes(n: int = 50) -> pd.DataFrame:
    """The first n test scenes as the minis read them.

    Rows: i, key (of the scene), codes (64 ids of image tokens, row by row).  The minis share one image tokenizer.
    """
    experiment = Experiment("mini-native-0", n_questions=n, dtype="float32")
    scenes, codes = experiment.pictures("questions"), []
    for model, batch, _ in experiment.batches("questions", scenes):
        for pixels in batch.inputs["pixel_values"]:  # one at a time, as the model encodes them
            codes.append(model.network.model.get_image_tokens(pixels[None]).flatten().tolist())  # (64,)
    return pd.DataFrame({"i": range(n), "key": [scene.key for scene in scenes], "codes": codes})
