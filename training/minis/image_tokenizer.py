"""Train the image tokenizer of the native minis: an encoder, a codebook, and a decoder that only training needs.

Source: van den Oord et al. 2017 (VQ-VAE), the loss as in transformers' `ChameleonVQVAE`; dead codes are moved to badly
described patches, as in Dhariwal et al. 2020 (Jukebox).  Pixels of objects weigh more than background, and a reader
must find in the codes what stands in each cell: as in Gafni et al. 2022 (Make-A-Scene, the tokenizer of Chameleon), a
loss on objects keeps what matters in a picture and takes little room in it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from training.common import learning_rate, take_step
from training.scenes.drawing import draw
from training.scenes.scene import VALUES, Scene, sample

SIDE, PATCH = 64, 8  # pixels of an image, and of what becomes a token
N_IMAGE = (SIDE // PATCH) ** 2  # tokens of an image, unless a recipe says otherwise
WARM_STEPS = 300  # without quantisation, so that there is something to place the codes among
MOVE_EVERY, UNUSED = 50, 0.3  # steps; a code used less than this (decaying mean count) is moved
ATTRIBUTES = tuple(("", *VALUES[attribute]) for attribute in ("shape", "colour", "texture", "size"))
SIZES = tuple(map(len, ATTRIBUTES))
SETTLED = 0.7  # share of the steps after which no code is moved


def side_of(n_image: int) -> int:
    """Pixels a side of a picture that becomes so many image tokens, a square number.

    The image tokenizer is made of convolutions, so it describes a picture of any size, a token for 8 x 8 pixels.
    """
    return PATCH * math.isqrt(n_image)


class Decoder(nn.Sequential):
    """From codes (B, D, 8, 8) to pixels (B, 3, 64, 64)."""

    def __init__(self, code_size: int, width: int = 128):
        super().__init__(
            nn.Conv2d(code_size, width, 3, padding=1),
            Residual(width),
            Residual(width),
            nn.Conv2d(width, 2 * width, 1),
            nn.PixelShuffle(2),
            Residual(width // 2),
            nn.Conv2d(width // 2, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )


class Reader(nn.Sequential):
    """From codes (B, D, 8, 8) to scores (B, 9 * n) of what stands in each cell of the grid."""

    def __init__(self, code_size: int, width: int = 64):
        super().__init__(
            nn.Conv2d(code_size, width, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(width * N_IMAGE, 9 * sum(SIZES)),
        )


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        parts = [(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)) for _ in range(2)]
        self.inner = nn.Sequential(*(layer for block in parts for layer in block))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.inner(x)


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """(N, 3, 64, 64) uint8."""
    pictures = [np.asarray(draw(scene, SIDE)) for scene in scenes]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def cells(scenes: Sequence[Scene]) -> Tensor:
    """(N, 9, 4) int64: shape, colour, texture and size in each cell of the grid, by place in ATTRIBUTES; 0: empty."""
    contents = torch.zeros(len(scenes), 9, len(ATTRIBUTES), dtype=torch.long)
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            values = (thing.shape, thing.colour, thing.texture, thing.size)
            what = torch.tensor([names.index(value) for names, value in zip(ATTRIBUTES, values, strict=True)])
            for place in thing.places:
                contents[row, 3 * place.row + place.column] = what
    return contents


def reading_loss(scores: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean cross-entropy of scores (B, P, sum of sizes) of P places, summed over what is asked of a place.

    targets: (B, P, len(sizes)) int64.
    """
    parts = scores.split(list(sizes), dim=2)
    return sum(cross_entropy(part.flatten(0, 1), targets[..., i].flatten()) for i, part in enumerate(parts))


def drawing_loss(y: Tensor, x: Tensor, weight: float) -> Tensor:
    """Mean distance of pixels; those that differ from the picture's corner, which is background, weigh more."""
    objects = ((x - x[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.1).float()
    return ((1 + weight * objects) * ((y - x).abs() + (y - x) ** 2)).mean()


def scaled(images: Tensor) -> Tensor:
    """Bytes as the model's processor gives them: float32 from -1 to 1, channels last in memory."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def vq_settings(codebook: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of Chameleon's image tokenizer: three halvings of the picture, then two blocks that see around."""
    return {
        "num_embeddings": codebook["n_codes"],
        "embed_dim": codebook["code_size"],
        "latent_channels": codebook["code_size"],
        "base_channels": codebook["channels"],
        "channel_multiplier": [1, 1, 1, 1],
        "num_res_blocks": 0,
        "resolution": SIDE,
        "attn_type": "none",
    }


def train(settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Train an image tokenizer to describe scenes so that they can be drawn again.

    Returns the weights of the tokenizer and of its decoder ("vq.", "decoder.").
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        vq = ChameleonVQVAE(ChameleonVQVAEConfig(**vq_settings(settings))).train()
        decoder = Decoder(settings["code_size"])
        both = nn.ModuleDict({"vq": vq, "decoder": decoder}).to(memory_format=torch.channels_last)
        reader = Reader(settings["code_size"])
        learning = [*both.parameters(), *reader.parameters()]
        scenes = sample("train", settings["n_scenes"], settings["seed"])
        images, contents = pixels(scenes), cells(scenes)
        optimizer = torch.optim.AdamW(learning, weight_decay=0.0)
        used = torch.zeros(settings["n_codes"])
        steps = settings["steps"]
        for step in tqdm(range(steps), desc="image tokenizer", unit="step"):
            batch = torch.randint(len(images), (settings["batch"],))
            x = scaled(images[batch])  # (B, 3, 64, 64)
            z = vq.quant_conv(vq.encoder(x))  # (B, D, 8, 8)
            if step == WARM_STEPS:
                place(vq, z)
            quantized, loss, codes = (z, 0.0, None) if step < WARM_STEPS else vq.quantize(z)
            y = decoder(vq.post_quant_conv(quantized))  # (B, 3, 64, 64)
            scores = reader(quantized).unflatten(1, (9, -1))  # (B, 9, n)
            read = reading_loss(scores, contents[batch], SIZES)
            loss = loss + drawing_loss(y, x, settings["objects"]) + settings["reading"] * read
            loss.backward()
            nn.utils.clip_grad_norm_(learning, 1.0)
            take_step([optimizer], learning_rate(step, steps, settings["learning_rate"], 0.02))
            if codes is not None:
                used = 0.98 * used + torch.bincount(codes, minlength=len(used))
                if step % MOVE_EVERY == 0 and step < SETTLED * steps:
                    move(vq, z, quantized, used)
    return {name: tensor.detach().contiguous() for name, tensor in both.state_dict().items()}


def identity(vq: ChameleonVQVAE) -> str:
    """A hash of an image tokenizer's weights."""
    content = b"".join(tensor.float().cpu().numpy().tobytes() for tensor in vq.state_dict().values())
    return hashlib.sha256(content).hexdigest()[:16]


@torch.no_grad()
def place(vq: ChameleonVQVAE, z: Tensor) -> None:
    """Put the codes on patches far from each other (k-means++).  z: (B, D, 8, 8)."""
    points, codes = flat(z), vq.quantize.embedding.weight
    chosen = points[:1]
    nearest = ((points - chosen) ** 2).sum(1)
    while len(chosen) < len(codes):
        new = points[torch.multinomial(nearest + 1e-9, 1)]
        chosen = torch.cat([chosen, new])
        nearest = torch.minimum(nearest, ((points - new) ** 2).sum(1))
    codes.copy_(chosen)


@torch.no_grad()
def move(vq: ChameleonVQVAE, z: Tensor, quantized: Tensor, used: Tensor) -> None:
    """Move codes that nothing uses to patches that no code describes well; `used` is updated."""
    unused = (used < UNUSED).nonzero().flatten()
    if len(unused):
        points = flat(z)
        error = ((points - flat(quantized)) ** 2).sum(1)
        vq.quantize.embedding.weight[unused] = points[torch.multinomial(error + 1e-9, len(unused), replacement=True)]
        used[unused] = 1.0


def flat(z: Tensor) -> Tensor:
    """(B, D, H, W) as (B * H * W, D)."""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


@torch.no_grad()
def decoded(weights: Mapping[str, Tensor], settings: Mapping[str, Any], codes: Tensor) -> list[Image.Image]:
    """Pictures of images given as codes.  codes: (N, 64) int64, 0 … n_codes - 1."""
    vq = ChameleonVQVAE(ChameleonVQVAEConfig(**vq_settings(settings))).eval()
    decoder = Decoder(settings["code_size"]).eval()
    nn.ModuleDict({"vq": vq, "decoder": decoder}).load_state_dict(weights)
    side = int(codes.shape[1] ** 0.5)
    z = vq.quantize.embedding(codes).view(len(codes), side, side, -1).permute(0, 3, 1, 2)
    y = decoder(vq.post_quant_conv(z)).clamp(-1, 1)
    pixels = ((y + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()  # (N, H, W, 3)
    return [Image.fromarray(picture) for picture in pixels]
