"""The codes of images in models that read them from the same vocabulary as text (Chameleon, Emu3).

encode_once(network)      # from now on an image goes through the image tokenizer alone, and only once
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


def encode_once(network: PreTrainedModel) -> None:
    """Keep the codes of every image that a network has seen; a network without an image tokenizer is left as it is.

    Once, because the methods here ask many things about one image, and encoding it takes longer than reading it.
    Alone, because codes must not depend on batch mates: Emu3 pads the images of a batch to the largest, and the norms
    of its encoder see the padding; and the last bit of a convolution, which can turn a code, depends on the batch.
    """
    encode = getattr(network.model, "get_image_tokens", None)
    if encode is None:
        return
    known: dict[str, Tensor] = {}

    def codes(image: Tensor, size: Tensor | None) -> Tensor:
        """(n,) int64.  image: (3, H, W).  size: of Emu3, (1, 2), height and width without the padding."""
        if size is not None:
            height, width = size[0].tolist()
            image = image[:, :height, :width]
        key = hashlib.sha256(image.contiguous().view(torch.uint8).numpy(force=True)).hexdigest() + str(image.shape)
        if key not in known:
            known[key] = encode(image[None], *[] if size is None else [size]).flatten()
        return known[key]

    def get_image_features(
        pixel_values: Tensor, image_sizes: Tensor | None = None, **settings: object
    ) -> BaseModelOutputWithPooling:
        """As transformers' own, but for what only training needs."""
        sizes = [None] * len(pixel_values) if image_sizes is None else image_sizes.split(1)
        found = [network.get_input_embeddings()(codes(*one)) for one in zip(pixel_values, sizes, strict=True)]
        return BaseModelOutputWithPooling(pooler_output=found if image_sizes is not None else torch.stack(found))

    network.model.get_image_features = get_image_features
