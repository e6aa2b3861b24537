"""The vision-language model that all instruments take hold of; `vlm.load` makes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers import PreTrainedTokenizerBase as Tokenizer

from .tokens import Family


@dataclass(frozen=True)
class VisionLanguageModel:
    """A vision-language model ready to be read.

    template: what a text is put into, at "{prompt}".
    """

    name: str
    network: PreTrainedModel
    processor: ProcessorMixin
    family: Family
    template: str

    @property
    def layers(self) -> nn.ModuleList:
        """The L blocks of the language model; each has its attention at `self_attn`."""
        return self.network.get_decoder().layers

    @property
    def final_norm(self) -> nn.Module:
        """What normalises the residual stream after the last block, before the head."""
        return self.network.get_decoder().norm

    @property
    def text_config(self) -> PreTrainedConfig:
        """The config that all attention modules of the blocks hold, and ask for their implementation."""
        return self.layers[0].self_attn.config

    @property
    def n_layers(self) -> int:
        """Number of blocks L."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """Where the embeddings are, hence where the inputs go."""
        return self.network.get_input_embeddings().weight.device

    @property
    def tokenizer(self) -> Tokenizer:
        """The processor's tokenizer."""
        return self.processor.tokenizer
