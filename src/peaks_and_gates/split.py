"""A model that is too big for one GPU: whether it fits several, and whether, split over them, it is still the same.

A forward pass that leaves one GPU and arrives at another as zeros raises no error: it gives wrong states. So before a
split model is used, every hop is looked at on a short text: does the next block read what the last one wrote, and does
it make of it what a copy of the block on the CPU makes of it?
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .errors import ModelUnavailable

ROOM = 1.25  # memory asked for as a multiple of the weights: keys, values and states of a batch need some, too
TOLERANCE = 0.05  # of a block's output, relative: bfloat16 keeps 8 bits
GIB = 2**30


def weight_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of a causal language model's weights, without making them; tied ones count once."""
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return sum(weight.numel() * dtype.itemsize for weight in network.parameters())


def memory_limits(needed: int, free: Sequence[int], name: str) -> dict[int, int] | None:
    """How much of each GPU a model may take if it must be split; None if it fits the first one.

    needed: bytes of the weights.  free: bytes free on each GPU.  Raises ModelUnavailable if all are too small.
    """
    if ROOM * needed <= free[0]:
        return None
    if ROOM * needed <= sum(free):
        return {gpu: int(bytes_free / ROOM) for gpu, bytes_free in enumerate(free)}
    raise ModelUnavailable(
        f"{name} needs about {ROOM * needed / GIB:.1f} GiB of GPU memory ({needed / GIB:.1f} of weights, the rest for "
        f"a batch), and {sum(free) / GIB:.1f} GiB are free on {len(free)} GPU(s). Give it more GPUs "
        "(CUDA_VISIBLE_DEVICES, gpus_per_node in a profile), end what else runs there, or take a smaller model."
    )


def free_memory() -> list[int]:
    """Bytes free on each GPU."""
    return [torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())]


def device_of(block: nn.Module) -> torch.device:
    """Where a block runs."""
    return next(block.parameters()).device


@torch.inference_mode()
def preflight(network: PreTrainedModel, ids: Tensor, name: str) -> int:
    """Check every hop from one device to another on a short text, ids (1, T).  Returns the number of hops.

    Raises ModelUnavailable, naming the two devices.
    """
    blocks = network.get_decoder().layers
    hops = [i for i in range(1, len(blocks)) if device_of(blocks[i]) != device_of(blocks[i - 1])]
    written: dict[int, Tensor] = {}
    read: dict[int, Tensor] = {}
    called: dict[int, dict[str, Any]] = {}
    hooks = []
    for i in hops:
        for block in (i - 1, i):
            keep = lambda module, args, output, block=block: written.__setitem__(block, output)
            hooks.append(blocks[block].register_forward_hook(keep))
        hooks.append(
            blocks[i].register_forward_pre_hook(
                lambda module, args, kwargs, i=i: called.__setitem__(i, kwargs), with_kwargs=True
            )
        )
        # Inside the block: outside it, the states have not travelled yet.
        hooks.append(
            blocks[i].input_layernorm.register_forward_pre_hook(lambda module, args, i=i: read.__setitem__(i, args[0]))
        )
    try:
        network.get_decoder()(ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    for i in hops:
        pair = f"{device_of(blocks[i - 1])} and {device_of(blocks[i])}"
        sent = written[i - 1].float().cpu()
        if not torch.equal(sent, read[i].float().cpu()):
            raise ModelUnavailable(
                f"{name}: states change on the way between {pair} (block {i} to {i + 1}), so that all that follows is "
                "wrong. This is a fault of the machine's peer-to-peer copies: set NCCL_P2P_DISABLE=1 or boot with the "
                "IOMMU off, use another pair (CUDA_VISIBLE_DEVICES), or a GPU that holds the model alone."
            )
        alone = on_cpu(blocks[i])
        expected = alone(sent, **{key: moved(value) for key, value in called[i].items()})
        difference = (written[i].float().cpu() - expected).norm() / expected.norm()
        if not difference <= TOLERANCE:  # also if it is no number
            raise ModelUnavailable(
                f"{name}: behind the hop between {pair}, block {i + 1} differs from the same on the CPU by "
                f"{difference:.0%}. Use another pair (CUDA_VISIBLE_DEVICES)."
            )
    return len(hops)


def on_cpu(block: nn.Module) -> nn.Module:
    """A copy of a block that runs in float32 on the CPU, and moves nothing."""
    return remove_hook_from_module(copy.deepcopy(block), recurse=True).cpu().float()


def moved(value: Any) -> Any:
    """A block's argument on the CPU, numbers in float32."""
    if isinstance(value, tuple):
        return tuple(moved(each) for each in value)
    if not isinstance(value, Tensor):
        return value
    return value.cpu().float() if value.is_floating_point() else value.cpu()
