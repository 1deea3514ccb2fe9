"""Image files to pixels: as OpenCV decodes them, with damage an error and not a line of theirs."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from flowkit.image_files import decode_image, image_size

PIXELS = cv2.GaussianBlur(np.random.default_rng(7).normal(128, 60, (21, 34, 4)), (0, 0), 2)
PIXELS = PIXELS.clip(0, 255).astype(np.uint8)
GRAY, COLOR, ALPHA = (
    Image.fromarray(PIXELS[..., 0]),
    Image.fromarray(PIXELS[..., :3]),
    Image.fromarray(PIXELS),
)
DEEP = np.random.default_rng(7).integers(0, 65535, (21, 34, 3), np.uint16)


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def with_orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


IMAGES = {
    "gray JPEG": encoded(GRAY, "jpeg"),
    "JPEG": encoded(COLOR, "jpeg"),
    "JPEG, quarter color": encoded(COLOR, "jpeg", subsampling="4:1:1"),
    "progressive JPEG": encoded(COLOR, "jpeg", progressive=True),
    "CMYK JPEG": encoded(COLOR.convert("CMYK"), "jpeg"),
    "gray PNG": encoded(GRAY, "png"),
    "PNG": encoded(COLOR, "png"),
    "PNG with alpha": encoded(ALPHA, "png"),
    "gray PNG with alpha": encoded(Image.merge("LA", [GRAY, GRAY]), "png"),
    "PNG of a palette": encoded(COLOR.quantize(20), "png", transparency=3),
    "PNG of 1 bit": encoded(GRAY.convert("1"), "png"),
    "gray PNG of 16 bits": encoded(Image.fromarray(DEEP[..., 0]), "png"),
    "PNG of 16 bits": cv2.imencode(".png", DEEP)[1].tobytes(),
    "gray BMP": encoded(GRAY, "bmp"),
    "BMP": encoded(COLOR, "bmp"),
    "BMP of 32 bits": cv2.imencode(".bmp", PIXELS)[1].tobytes(),
    **{f"JPEG, turned {n}": encoded(COLOR, "jpeg", exif=with_orientation(n)) for n in range(1, 9)},
    "PNG, turned 6": encoded(COLOR, "png", exif=with_orientation(6)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_pixels_are_those_of_opencv(name):
    data = IMAGES[name]
    bgr, gray = (cv2.imdecode(np.frombuffer(data, np.uint8), flags) for flags in (1, 0))
    np.testing.assert_array_equal(decode_image(data, upright=True), bgr)
    found = decode_image(memoryview(data), gray=True, upright=True)
    exact = (
        "JPEG" in name or "gray" in name
    )  # of colors that are coded as such, rounding may differ
    np.testing.assert_allclose(found.astype(int), gray, atol=0 if exact else 1)


def test_pixels_are_as_stored_unless_upright():
    data = IMAGES["JPEG, turned 6"]
    np.testing.assert_array_equal(decode_image(data), decode_image(IMAGES["JPEG"]))


@pytest.mark.parametrize("name", ["gray JPEG", "JPEG", "PNG", "gray PNG", "BMP"])
def test_damage_is_an_error_and_prints_nothing(name, capfd):
    """Files cut off, and bytes changed anywhere: an error of one line, or pixels, in silence."""
    data, chance = IMAGES[name], np.random.default_rng(7)
    with pytest.raises(ValueError):
        decode_image(data[:-9])
    refused = 0
    for _ in range(300):
        changed = bytearray(data)
        changed[chance.integers(len(data))] ^= 1 << chance.integers(8)
        try:
            assert decode_image(bytes(changed), damaged=bool(chance.integers(2))).dtype == np.uint8
        except ValueError as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
    assert refused > {"JPEG": 20, "PNG": 290, "BMP": -1}[name.split()[-1]]  # PNG has checksums
    assert capfd.readouterr() == ("", "")


def test_a_damaged_jpeg_has_pixels_as_far_as_it_goes():
    data = IMAGES["gray JPEG"]
    cut = data[:-40]
    with pytest.raises(ValueError, match="Premature end"):
        decode_image(cut, gray=True)
    whole, part = decode_image(data, gray=True), decode_image(cut, gray=True, damaged=True)
    np.testing.assert_array_equal(part[:8], whole[:8])
    assert part.shape == whole.shape


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_the_size_in_an_images_header(suffix):
    image = np.zeros((5, 7, 3), np.uint8)
    data = cv2.imencode(suffix, image)[1].tobytes()
    assert image_size(data) == (5, 7)
    assert image_size(data[:9]) is None
    assert image_size(b"text") is None


def test_the_size_in_a_jpegs_header_is_what_pillow_reads_there():
    image = Image.fromarray(np.zeros((5, 7, 3), np.uint8))
    options = [
        {},
        {"progressive": True},
        {"exif": b"Exif\0\0" + b"\xff\xc0" * 9},
        {"comment": b"x"},
    ]
    for one in [*options, {"icc_profile": b"p" * 70_000}, {"restart_marker_rows": 1}]:
        file = io.BytesIO()
        image.save(file, "JPEG", **one)
        data = file.getvalue()
        at = data.index(b"\xff\xdb")  # of the tables
        damaged = data[:at] + b"junk" + data[at:]
        for some in (data, data[:at] + b"\xff" + data[at:], damaged, data[: at + 1], data[:4]):
            try:
                expected = Image.open(io.BytesIO(some)).size[::-1]
            except OSError:
                expected = None
            assert image_size(some) == expected, one
