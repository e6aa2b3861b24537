"""What the minis' cards say, as tidy tables; and pictures through the eyes, and from the hand, of a native mini.

Rows: mini, role, seed, metric (a kind of question, "all questions", "classes", "cider_ptb"), value, low, high, n.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from . import codebook, minis, record, scenes, store, vlms
from .errors import BadParameter
from .scene_drawing import draw
from .scene_words import caption
from .vlms import VisionLanguageModel


def card(name: str) -> dict[str, Any]:
    """The card of a mini that vlms.yml knows.  Raises UnknownName, MissingFile, HashMismatch."""
    described = vlms.describe(name)
    if described["provider"] != "mini":
        raise BadParameter(f"{name} is no mini, so it has no card.")
    return store.read_json(vlms.mini_folder(described["folder"]).with_suffix(".json"))


def abilities(names: Sequence[str], name: str = "minis") -> pd.DataFrame:
    """What every mini can do on test scenes, as measured when it was trained; recorded under `name`."""
    return record.table(name, {"minis": list(names)}, lambda: pd.concat([_rows(each) for each in names]))


def _rows(name: str) -> pd.DataFrame:
    """One card's scores, and how long its training took."""
    about = card(name)
    scores = about["scores"]
    found = scores["questions"] | {key: value for key, value in scores.items() if key != "questions"}
    exactly = lambda value: {"value": value, "low": value, "high": value, "n": 1}
    found |= {
        "million parameters": exactly(about["parameters"] / 1e6),
        "minutes": exactly(about["log"]["seconds"] / 60),
    }
    found |= {"steps": exactly(len(about["log"]["loss"]))}
    columns = ("value", "low", "high", "n")
    rows = [{"mini": name, "metric": metric} | {c: e[c] for c in columns} for metric, e in found.items()]
    return pd.DataFrame(rows).astype({column: float for column in columns})


def losses(names: Sequence[str], name: str = "mini_losses") -> pd.DataFrame:
    """The loss on text at every step of training: mini, step, loss (nats per token); recorded under `name`."""

    def compute() -> pd.DataFrame:
        logs = {each: card(each)["log"]["loss"] for each in names}
        return pd.concat([pd.DataFrame({"mini": m, "step": range(1, len(v) + 1), "loss": v}) for m, v in logs.items()])

    return record.table(name, {"minis": list(names)}, compute)


def sights(name: str, n: int, seed: int = 0, table: str = "mini_sights") -> pd.DataFrame:
    """n test scenes as a native mini sees them, and pictures it makes of their captions; recorded under `table`.

    Rows: kind ("drawn", "seen": through image tokens and back, "imagined"), caption, png (bytes).
    """

    def compute() -> pd.DataFrame:
        model = vlms.load(name)
        shown = scenes.sample("test", n, seed)
        told = [caption(scene) for scene in shown]
        drawn = [draw(scene, codebook.SIDE) for scene in shown]
        kinds = {"drawn": drawn, "seen": described_again(model, drawn), "imagined": imagined(model, told, seed)}
        return pd.DataFrame([
            {"kind": kind, "caption": text, "png": encoded(picture)}
            for kind, pictures in kinds.items()
            for text, picture in zip(told, pictures, strict=True)
        ])  # fmt: skip

    return record.table(table, {"model": name, "n": n, "seed": seed}, compute)


def encoded(picture: Image.Image) -> bytes:
    """A picture as PNG."""
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


def described_again(model: VisionLanguageModel, drawn: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures turned into image tokens and drawn again by the image tokenizer's decoder: what it can see."""
    pixels = model.processor.image_processor(list(drawn), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        codes = model.network.model.vqmodel.encode(pixels.to(model.device), return_dict=True).image_tokens
    return from_codes(codes.view(len(drawn), -1).cpu())


def imagined(model: VisionLanguageModel, texts: Sequence[str], seed: int = 0) -> list[Image.Image]:
    """Pictures that a native mini makes of captions: its image tokens, drawn at random as it expects them, one a text.

    The model's own head forbids image tokens in an answer, so they are drawn from its states and its embeddings.
    """
    words, network = model.tokenizer, model.network
    codes = words.convert_tokens_to_ids(minis.code_names(network.config.vq_config.num_embeddings))
    table = network.get_output_embeddings().weight[codes]  # (codes, D)
    generator = torch.Generator().manual_seed(seed)
    return from_codes(torch.cat([_imagined(model, text, table, codes[0], generator) for text in texts]))


@torch.inference_mode()
def _imagined(model: VisionLanguageModel, text: str, table: Tensor, first: int, generator: torch.Generator) -> Tensor:
    """The codes (1, 64) of one picture.  first: id of the first code; the others follow it."""
    ids = model.tokenizer(f"{text}<begin>", return_tensors="pt")["input_ids"].to(model.device)
    cache, found = None, []
    for _ in range(codebook.N_IMAGE):
        out = model.network.model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        chances = (out.last_hidden_state[0, -1] @ table.T).float().softmax(-1).cpu()
        found.append(torch.multinomial(chances, 1, generator=generator))
        ids = (found[-1] + first)[None].to(model.device)
    return torch.stack(found, 1)


def from_codes(codes: Tensor) -> list[Image.Image]:
    """Pictures of codes (N, 64) by the decoder of the book's image tokenizer."""
    settings: Mapping[str, Any] = minis.recipes("laptop")["codebook"]
    return codebook.decoded(
        codebook.codebook(settings, minis.minis_folder("laptop") / "codebook.safetensors"), settings, codes
    )
