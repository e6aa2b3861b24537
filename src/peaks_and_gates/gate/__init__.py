"""Paper 2, *The narrow gate*: where image and text meet in a vision-language model.

tokens       what each token of a prompt is
vlm          load a model and write prompts for it
attention    knockout, and the shares of attention
patching     read, replace and steer states
study        the paper's experiments
"""

_OF_STUDY = ("Study", "class_overlap", "cross_attention", "each", "modality_gap", "named", "roles")


def __getattr__(name: str) -> object:
    """The experiments, imported when they are asked for."""
    if name in _OF_STUDY:
        from . import study

        return getattr(study, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
