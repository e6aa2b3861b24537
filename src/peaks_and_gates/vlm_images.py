"""Images as every processor can take them: one frame, eight bits, RGB."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import BadImage

SMALLEST = 4  # pixels: processors take a side of 1 or 3 for the colour channels
EIGHT_BITS = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}


def open_image(image: Image.Image | str | Path) -> Image.Image:
    """An image or the file of one as RGB: upright, grey and palettes spread to colours, what is transparent on white.

    Raises BadImage: not there, not readable, animated, not of eight bits, or a side below 4 pixels.
    """
    if not isinstance(image, Image.Image | str | Path):
        raise BadImage(f"An image is a PIL image or the path of a file, not a {type(image).__name__}.")
    name = "The image" if isinstance(image, Image.Image) else f"The image {image}"
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        if getattr(opened, "n_frames", 1) > 1:
            raise BadImage(f"{name} is animated or has pages: {opened.n_frames} frames. Save the one that is meant.")
        opened.load()
    except FileNotFoundError as error:
        raise BadImage(f"There is no image {image}. Check the path.") from error
    except UnidentifiedImageError as error:
        raise BadImage(f"{name} is of no format that PIL knows, or is no image.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(f"{name} cannot be read: {error}.") from error
    if opened.mode not in EIGHT_BITS:
        raise BadImage(f"{name} has pixels of the kind {opened.mode}; bring them to 8 bits a channel first.")
    if min(opened.size) < SMALLEST:
        raise BadImage(f"{name} is {opened.width} x {opened.height} pixels; each side must be at least {SMALLEST}.")
    upright = ImageOps.exif_transpose(opened)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    return upright.convert("RGB")
