"""Images as every processor can take them: one frame, eight bits, RGB."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import BadImage

SMALLEST = 4  # pixels: processors take a side of 1 or 3 for the colour channels
LARGEST = 89_000_000  # pixels of an image, a little below where PIL begins to warn of decompression bombs
EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}


def open_image(image: Image.Image | str | Path, called: str = "The image") -> Image.Image:
    """An image or the file of one as RGB: upright, grey and palettes spread to colours, what is transparent on white.

    called: what to call an image without a file's name in an error.
    Raises BadImage: not there, not readable, animated, not of eight bits, a side below 4 pixels, above 89 megapixels.
    """
    if not isinstance(image, Image.Image | str | Path):
        raise BadImage(f"{called} must be a PIL image or the path of a file, not a {type(image).__name__}.")
    name = called if isinstance(image, Image.Image) else f"The image {image}"
    try:
        upright = _read(image, name)
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise BadImage(f"There is no image {image}. Check the path.") from error
    except UnidentifiedImageError as error:
        raise BadImage(f"{name} is of no format that PIL knows, or is no image. Save it as PNG or JPEG.") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"{name} is too large: {error} Scale it down below {LARGEST / 1e6:.0f} megapixels.") from error
    except Exception as error:  # of a damaged file, decoders raise whatever they stumble over
        raise BadImage(f"{name} cannot be read: {error}. Save it anew, or take another.") from error
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    return upright.convert("RGB")


def _read(image: Image.Image | str | Path, name: str) -> Image.Image:
    """The pixels of an image, upright.  name: for errors.  Raises BadImage, and whatever PIL raises."""
    opened = image if isinstance(image, Image.Image) else Image.open(image)
    # The size is in the header: look before the pixels are unpacked.
    if min(opened.size) < SMALLEST:
        raise BadImage(f"{name} is {opened.width} x {opened.height} pixels; each side must be at least {SMALLEST}.")
    if opened.width * opened.height > LARGEST:
        raise BadImage(
            f"{name} is too large: {opened.width} x {opened.height} pixels. Scale it down below "
            f"{LARGEST / 1e6:.0f} megapixels."
        )
    if getattr(opened, "n_frames", 1) > 1:
        raise BadImage(f"{name} is animated or has pages: {opened.n_frames} frames. Save the one that is meant.")
    opened.load()
    if opened.mode not in EIGHT_BITS:
        raise BadImage(f"{name} has pixels of the kind {opened.mode}; save it as RGB of 8 bits a channel first.")
    return ImageOps.exif_transpose(opened)
