"""Paper 2, *The narrow gate*: where image and text meet in a vision-language model.

tokens       what each token of a prompt is
vlm, inputs  load a model and write prompts for it
attention    knockout, the shares of attention, and wirings
patching     read, replace and steer states
measures     modality gap, class overlap, similarity of outputs, flips; `answers` scores texts
pictures     what the models are shown
experiment   several models on many pictures; `split` runs the common beginning of prompts once
"""
