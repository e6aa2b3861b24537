"""The conditions and layers that the probes are compared at."""

from __future__ import annotations

from dataclasses import replace

from .errors import BadParameter
from .peaks import Study, condition_name

Case = tuple[str, Study]  # a condition's name, and the study that asks for it alone


def cases(study: Study, pretrained: str, fine_tuned: str) -> list[Case]:
    """No and most shots for the study's model and for `pretrained` (once if they are one), and the fine-tuned model."""
    models = dict.fromkeys([study.model, pretrained])
    shots = dict.fromkeys([0, max(study.shots)])
    few = [(condition_name(k), replace(study, model=model, shots=[k])) for model in models for k in shots]
    return [*few, ("fine-tuned", replace(study, model=fine_tuned, shots=[0]))]


def layers_of(n_layers: int, every: int = 3) -> list[int]:
    """Every so many layers, counted back from the last.  Raises BadParameter if that leaves a single one."""
    layers = list(range(n_layers, 0, -every))[::-1] if every > 0 else []
    if len(layers) < 2:
        raise BadParameter(f"every={every} leaves {len(layers)} of {n_layers} layers; choose 1 to {n_layers - 1}.")
    return layers
