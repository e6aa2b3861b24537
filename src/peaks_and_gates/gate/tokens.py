"""Where the image, the gate and the text sit among the tokens of a prompt.

tokens = vlm.encode(model, images, texts).tokens
tokens.where("end")              # (B, T) bool, the tokens that end the image
tokens.where("text", "special")  # more than one group together
tokens.random("image", 10, seed=0)

Everything is read from the processor and the config of the model, nothing from constants. Per row there is one image,
written as one block of tokens:

    <s> a text  <begin>  image image <special> image image  <end>  more text
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor
from transformers import PreTrainedConfig as Config
from transformers import ProcessorMixin

from ..errors import BadImage, BadParameter, ModelUnavailable, UnknownName
from ..statistics import at_least

KINDS = ("padding", "text", "begin", "image", "special", "end")
BLOCK = ("begin", "image", "special", "end")
GROUPS = (*KINDS, "block", "prompt", "last", "last image", "gate", "after")


@dataclass(frozen=True)
class Family:
    """How the models of one kind write an image among their tokens.

    native: whether its models were trained from scratch on images and text.  processor: the name of its class in
    transformers.
    begin, end: attributes of the processor that hold the token that the image's block begins with and the one it ends
    with; None where the family has none.  If begin and end are one token, it also stands before every tile of the
    image.  The token of the image's features is the processor's `image_token`.
    marks: whether begin and end are chat marks that `inputs.encode` writes around the image, as the paper's code does;
    they stand elsewhere in a prompt, too.
    """

    native: bool
    processor: str
    begin: str | None = None
    end: str | None = None
    marks: bool = False


ROWS = yaml.safe_load(Path(__file__).with_name("families.yml").read_bytes())
FAMILIES = {name: Family(**row) for name, row in ROWS.items()}


@dataclass(frozen=True)
class TokenMap:
    """What every token of a batch is.

    kinds: (B, T) uint8, indices into KINDS:
        padding  not part of the prompt
        begin    the token that the image's block begins with
        image    the tokens that carry the image's features or codes; in Emu3 also the ends of rows among them
        special  everything else inside the block: row breaks, tags of tiles, the digits of the size
        end      all that follows the last image token, to the token that the block ends with: two in Emu3, one in the
                 others; in a family that has none, the first token after the image
        text     everything outside the block: words, but also the start of the text, separators and chat marks
    """

    kinds: Tensor

    def where(self, *groups: str) -> Tensor:
        """Which tokens are in any of the groups, (B, T) bool.

        groups: kinds, or `block` (begin to end), `prompt` (all but padding), `last` (the last token of the prompt),
        `last image` (the last image token), `gate` (the last of the end tokens: a knockout hides all of them, as the
        paper's code does for Emu3, and this is the one whose state it reads and patches) and `after` (the text after
        the end tokens).
        Raises UnknownName.
        """
        return torch.stack([self._group(group) for group in groups]).any(0)

    def random(self, group: str, n: int, seed: int | Sequence[int]) -> Tensor:
        """n tokens of a group in each row, drawn without replacement, (B, T) bool.

        seed: one for all rows, or one per row.  A row's choice depends on its seed and on how many tokens of the group
        it has, and on neither its padding nor the other rows: rows alike in length get the same choice under one seed.
        Raises UnknownName, BadParameter, ValueError (not one seed per row).
        """
        at_least(1, n=n)
        members = self.where(group)
        if n > (fewest := int(members.sum(1).min())):
            raise BadParameter(f"{n} tokens of the group '{group}' are asked for, and a prompt has only {fewest}.")
        seeds = [seed] * len(members) if isinstance(seed, int | np.integer) else seed
        chosen = torch.zeros_like(members)
        for row, member, row_seed in zip(chosen, members, seeds, strict=True):
            places = member.nonzero().flatten().cpu()
            row[places[np.random.default_rng(row_seed).choice(len(places), n, replace=False)]] = True
        return chosen

    def _group(self, group: str) -> Tensor:
        match group:
            case "block":
                return torch.isin(self.kinds, self.kinds.new_tensor([KINDS.index(kind) for kind in BLOCK]))
            case "prompt":
                return self.kinds != KINDS.index("padding")
            case "last":
                return _last(self._group("prompt"))
            case "last image":
                return _last(self._group("image"))
            case "gate":
                return _last(self._group("end"))
            case "after":
                return self._group("text") & (self._group("end").int().cumsum(1) > 0)
        if group not in KINDS:
            raise UnknownName("group of tokens", group, GROUPS)
        return self.kinds == KINDS.index(group)


def _last(members: Tensor) -> Tensor:
    """The last member of each row of a (B, T) bool."""
    return members & (members.flip(1).int().cumsum(1).flip(1) == 1)


def family_of(config: Config) -> str:
    """The key in FAMILIES of a model, from its config.  Raises ModelUnavailable."""
    vision = getattr(getattr(config, "vision_config", None), "model_type", None)
    key = "pixtral" if (config.model_type, vision) == ("llava", "pixtral") else config.model_type
    if key not in FAMILIES:
        raise ModelUnavailable(f"Models of the type '{config.model_type}' need a row in gate/families.yml.")
    return key


def token_map(
    family: Family, processor: ProcessorMixin, config: Config, ids: Tensor, mask: Tensor, with_image: bool = True
) -> TokenMap:
    """Say what every token of a batch of prompts is, padded on either side.

    ids: (B, T).  mask: (B, T), the attention mask.  with_image: False for prompts of text alone.
    Raises BadImage: no image in a row, more than one, or one in a prompt of text.  BadParameter: a mask with holes,
    an incomplete block, or no token after an image whose family has no end token.  ModelUnavailable: a processor
    whose tokens are not those of the model.
    Two images with nothing between them cannot be told from one in a family without begin and end tokens.
    """
    image = _token_id(family, processor, "image_token")
    begin, end = (attribute and _token_id(family, processor, attribute) for attribute in (family.begin, family.end))
    if image != getattr(config, "image_token_id", image):
        raise ModelUnavailable(f"The processor writes an image as token {image}: it is not of the same model.")
    rows = enumerate(zip(ids.cpu(), mask.cpu().bool(), strict=True))
    own = (image, begin, end, family.marks)
    kinds = [_row(row, line[real], real, own, with_image) for row, (line, real) in rows]  # B of (T,)
    return TokenMap(torch.stack(kinds).to(ids.device))


def _token_id(family: Family, processor: ProcessorMixin, attribute: str) -> int:
    """The id of a token that a processor names.  Raises ModelUnavailable."""
    token = getattr(processor, attribute, None)
    token_id = None if token is None else processor.tokenizer.convert_tokens_to_ids(str(token))
    if token_id is None or token_id == processor.tokenizer.unk_token_id:
        raise ModelUnavailable(f"The {type(processor).__name__} has no token at `{attribute}`, as its family has.")
    return token_id


def _row(row: int, ids: Tensor, mask: Tensor, own: tuple, with_image: bool) -> Tensor:
    """Kinds of one row, (T,) uint8.

    ids: (n,), those of the prompt alone.  mask: (T,) bool, where they sit.  own: the family's image, begin and end
    token, and whether these are marks.
    """
    if (mask.int().diff(prepend=torch.zeros(1, dtype=torch.int)) == 1).sum() != 1:
        raise BadParameter(f"Row {row}: the prompt is empty, or its attention mask is not one run of ones.")
    kinds = torch.full(ids.shape, KINDS.index("text"), dtype=torch.uint8)  # (n,)
    images = _places(ids, own[0])
    if with_image:
        first, last = _block(row, ids, images, *own[1:])
        kinds[first : last + 1] = KINDS.index("special")
        kinds[images] = KINDS.index("image")
        kinds[images[-1] + 1 : last + 1] = KINDS.index("end")
        if own[1] is not None:
            kinds[first] = KINDS.index("begin")
    elif images:
        raise BadImage(f"Row {row} is to be text alone, but has {len(images)} image tokens.")
    padded = torch.full(mask.shape, KINDS.index("padding"), dtype=torch.uint8)  # (T,)
    padded[mask] = kinds
    return padded


def _places(ids: Tensor, token: int | None) -> list[int]:
    """Where a token is in a prompt, ascending; nowhere if the family has no such token."""
    return [] if token is None else (ids == token).nonzero().flatten().tolist()


def _block(
    row: int, ids: Tensor, images: list[int], begin: int | None, end: int | None, marks: bool
) -> tuple[int, int]:
    """First and last place of the image's block in a prompt; the last is that of the end token, or what serves as it.

    ids: (n,).  images: where the image tokens are among them.  marks: whether only a begin right before the image
    and an end right behind it are the block's.  Raises BadImage, BadParameter.
    """
    if not images:
        raise BadImage(f"Row {row} has no image token. Put <image> where the image belongs in its text.")
    begins, ends = _places(ids, begin), _places(ids, end)
    runs = 1 + sum(after - before > 1 for before, after in pairwise(images))
    if marks:
        begins, ends = [i for i in begins if i == images[0] - 1], [i for i in ends if i == images[-1] + 1]
    if end is None or marks:
        n_images = runs
    elif begin == end:
        n_images = len(ends) - runs  # one before every tile, and one that closes the image
    else:
        n_images = max(len(begins), len(ends))
    if n_images > 1:
        raise BadImage(f"Row {row} has {n_images} images, or such a token as ends one in its text. Give it one image.")
    first = begins[0] if begins else images[0]
    last = ends[-1] if ends else images[-1] + 1
    missing = n_images < 1 or (begin is not None and not begins) or (end is not None and not ends)
    if missing or first > images[0] or last < images[-1]:
        raise BadParameter(f"Row {row}: the tokens around the image are incomplete or in a wrong order.")
    if last >= len(ids):
        raise BadParameter(f"Row {row} ends with the image. Put some text after <image>: it serves as the end token.")
    return first, last
