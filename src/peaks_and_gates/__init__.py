"""Peaks & Gates: the landscape of hidden states, and the narrow gate between image and text.

import peaks_and_gates as pg

study = pg.peaks.Study(model="smollm2-135m-instruct", questions="wordnet", n_subjects=32, n_per_subject=50)
table = pg.peaks.geometry(study)
"""

from . import claims, figures, landscape_figures, peaks
from .record import recorded

__all__ = ["claims", "figures", "landscape_figures", "peaks", "recorded"]
