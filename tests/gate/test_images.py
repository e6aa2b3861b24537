"""Images and their bytes as the RGB that processors take, and those that are refused."""

import io

import numpy as np
import pytest
from PIL import Image

from peaks_and_gates.errors import BadImage
from peaks_and_gates.gate.inputs import EIGHT_BITS, open_image
from tiny_vlms import picture


def pixels(image):
    return np.asarray(open_image(image, "it")).tolist()


def test_every_kind_of_pixel_becomes_rgb():
    half = np.zeros((8, 8, 4), np.uint8)
    half[:, :4] = (200, 0, 0, 255)  # the rest is transparent black
    red_on_white = [[[200, 0, 0]] * 4 + [[255, 255, 255]] * 4] * 8
    assert pixels(Image.fromarray(half)) == red_on_white
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([200, 0, 0, 0, 0, 0])
    palette.paste(0, (0, 0, 4, 8))
    palette.info["transparency"] = 1
    assert pixels(palette) == red_on_white
    assert pixels(Image.new("L", (4, 4), 90)) == [[[90] * 3] * 4] * 4
    assert pixels(Image.new("CMYK", (4, 4), (0, 255, 255, 0))) == [[[255, 0, 0]] * 4] * 4
    for mode in EIGHT_BITS:
        image = open_image(Image.new(mode, (8, 8)), "it")
        assert (image.mode, image.size) == ("RGB", (8, 8))


def test_a_photograph_is_turned_upright():
    image, turned, file = Image.new("RGB", (8, 6), "white"), Image.Exif(), io.BytesIO()
    image.putpixel((0, 0), (0, 0, 0))
    turned[0x0112] = 6  # the camera was held on its side
    image.save(file, "PNG", exif=turned)
    upright = open_image(file.getvalue(), "it")
    assert upright.size == (6, 8) and upright.getpixel((5, 0)) == (0, 0, 0)


def test_refused_images(tmp_path):
    picture(0).save(tmp_path / "moving.gif", save_all=True, append_images=[picture(1)])
    for image, message in [
        (tmp_path / "nothing.png", "cannot be read.*nothing.png.*Check the path"),
        ((tmp_path / "moving.gif").read_bytes()[:300], "it cannot be read"),
        (tmp_path / "moving.gif", "2 frames: save it as one frame"),
        (Image.new("I;16", (8, 8)), "pixels of the kind I;16.*RGB of 8 bits a channel"),
        (Image.new("RGB", (3, 50)), "3 x 50 pixels .*at least 4 pixels a side"),
    ]:
        with pytest.raises(BadImage, match=message):
            open_image(image, "it")
