"""Draw a scene: from the description to pixels, with nothing left to chance.

picture = draw(scene, size=64)  # a PIL image, the same bytes every time
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from peaks_and_gates.errors import BadParameter

from .scene import BACKGROUNDS, COLOURS, SIZES, Place, Scene, Thing

LEAST = 32  # pixels a side
FINE = 4  # tests per pixel and side
FULL, PALE = 4, 1  # how much of its colour a mark of a texture has, and how much the shape between the marks
MARK = 1 / 32  # width of a stripe, and half the distance of two dots, as a part of the picture


def draw(scene: Scene, size: int = 64) -> Image.Image:
    """The picture of a scene: RGB, `size` x `size` pixels, anti-aliased.

    A pixel is a whole-numbered mean of 4 x 4 inside-or-outside tests, so equal scenes give equal bytes.
    Raises BadParameter below 32 pixels, where textures blur.
    """
    if size < LEAST:
        raise BadParameter(f"size={size}: a scene needs at least {LEAST} pixels a side.")
    canvas = np.full((size, size, 3), BACKGROUNDS[scene.background], np.int64)
    for thing in scene.things:
        for place in thing.places:
            _paint(canvas, thing, place)
    return Image.fromarray(canvas.astype(np.uint8))


def _paint(canvas: np.ndarray, thing: Thing, place: Place) -> None:
    """Mix one object into the canvas, (size, size, 3) int64, in place."""
    size = len(canvas)
    cell, half = size / 3, SIZES[thing.size] * size / 3
    middle = (place.row + 0.5 + place.down / 100) * cell, (place.column + 0.5 + place.right / 100) * cell
    top, left = (int(m - half) for m in middle)
    bottom, right = (int(m + half) + 1 for m in middle)
    y = (np.arange(top * FINE, bottom * FINE) + 0.5)[:, None] / FINE - middle[0]  # (4h, 1) pixels below the middle
    x = (np.arange(left * FINE, right * FINE) + 0.5)[None, :] / FINE - middle[1]  # (1, 4w)
    weights = _inside(thing.shape, x / half, y / half) * _texture(thing, x, y, half, size * MARK)  # (4h, 4w)
    share = weights.reshape(bottom - top, FINE, right - left, FINE).sum((1, 3))[..., None]  # (h, w, 1)
    window = canvas[top:bottom, left:right]
    total = FULL * FINE**2
    window[:] = (window * (total - share) + np.array(COLOURS[thing.colour]) * share + total // 2) // total


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points are in a shape of half width 1; x to the right, y downwards."""
    match shape:
        case "circle":
            return x**2 + y**2 <= 0.96
        case "square":
            return np.maximum(abs(x), abs(y)) <= 0.84
        case "triangle":
            return (abs(x) <= (y + 0.95) * 0.55) & (y <= 0.8)
        case "cross":
            return (np.minimum(abs(x), abs(y)) <= 0.32) & (np.maximum(abs(x), abs(y)) <= 0.95)
        case "diamond":
            return abs(x) * 1.3 + abs(y) <= 1
    # A star: fold the plane into the tenth between a tip (radius 1) and the notch beside it (radius 0.48).
    angle = abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    along, across = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    notch = 0.48 * np.cos(np.pi / 5), 0.48 * np.sin(np.pi / 5)
    return (1 - along) * notch[1] >= across * (1 - notch[0])


def _texture(thing: Thing, x: np.ndarray, y: np.ndarray, half: float, mark: float) -> np.ndarray:
    """How much colour each point of a shape has: FULL, PALE, or 0 where the background shows."""
    match thing.texture:
        case "striped":
            return np.where(np.floor(y / mark + 0.5) % 2 == 0, FULL, PALE)
        case "dotted":
            near = lambda z: (z / mark + 1) % 2 - 1  # distance from the middle of the nearest dot, in marks
            return np.where(near(x) ** 2 + near(y) ** 2 < 0.5, FULL, PALE)
        case "hollow":
            return np.where(_inside(thing.shape, x / half / 0.6, y / half / 0.6), 0, FULL)
    return np.array(FULL)
