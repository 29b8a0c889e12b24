import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from datasets.image_files import IMAGE_SUFFIXES, class_folders, decode, images_of, is_hidden, visible_files
from utils.errors import UserError

RED, BLUE, SOFT = (200, 40, 40), (40, 40, 200), 40  # SOFT: what lossy formats may add
TURNS = {  # what a camera did, by the number that EXIF has for it
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def red_above_blue(width: int = 24, height: int = 16) -> Image.Image:
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2], picture[height // 2 :] = RED, BLUE
    return Image.fromarray(picture)


def check_red_above_blue(image: np.ndarray) -> None:
    for row, colour in ((1, RED), (-2, BLUE)):
        assert np.abs(image[:, row, 4].astype(int) - colour).max() < SOFT


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_photo_is_seen_as_a_viewer_shows_it(orientation: int, suffix: str, tmp_path: Path) -> None:
    data = Image.Exif()
    data[0x0112] = orientation
    red_above_blue().transpose(TURNS[orientation]).save(tmp_path / f"x.{suffix}", exif=data)
    check_red_above_blue(decode(tmp_path / f"x.{suffix}", 16))


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".pbm", ".pgm"}))
def test_every_kind_of_file(suffix: str, tmp_path: Path) -> None:
    red_above_blue().save(tmp_path / f"x{suffix.upper()}")
    check_red_above_blue(decode(images_of(tmp_path)[0], 16))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled(suffix: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 8).round().astype(np.uint16)[None].repeat(8, 0)
    Image.fromarray(ramp).save(tmp_path / f"x.{suffix}")
    assert decode(tmp_path / f"x.{suffix}", 8)[1, 3].tolist() == (ramp[0] / 257).round().tolist()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_white_are_refused(mode: str, tmp_path: Path) -> None:
    red_above_blue().convert(mode).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=rf"x\.tif has numbers of Pillow's mode {mode}"):
        decode(tmp_path / "x.tif", 8)


@pytest.mark.parametrize("back", [(0, 0, 0), (255, 255, 255)])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "tRNS"])
def test_what_is_transparent_is_white_whatever_its_bytes_are(kind: str, back: tuple[int, ...], tmp_path: Path) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 255
    picture = np.where(mask[..., None] > 0, np.uint8(90), np.array(back, np.uint8))
    image = Image.fromarray(np.concatenate([picture, mask[..., None]], 2))
    if kind == "tRNS":
        Image.fromarray(picture).save(tmp_path / "x.png", transparency=back)
    elif kind == "P":
        indexed = Image.fromarray(mask // 255)
        indexed.putpalette([*back, 90, 90, 90])
        indexed.save(tmp_path / "x.png", transparency=0)
    else:
        image.convert(kind).save(tmp_path / "x.png")
    decoded = decode(tmp_path / "x.png", 8)
    assert decoded[:, 0, 0].tolist() == [255] * 3
    assert decoded[:, 4, 4].tolist() == [90] * 3


@pytest.mark.parametrize(("bits", "clear"), [(1, 0), (2, 1), (4, 5)])
def test_the_grey_that_is_transparent_in_a_small_png_is_white(bits: int, clear: int, tmp_path: Path) -> None:
    """One pixel, which is transparent: written by hand, for Pillow writes no such file."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    parts = {
        b"IHDR": struct.pack(">IIBBBBB", 1, 1, bits, 0, 0, 0, 0),
        b"tRNS": struct.pack(">H", clear),
        b"IDAT": zlib.compress(bytes([0, clear << (8 - bits)])),
        b"IEND": b"",
    }
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts.items()))
    assert decode(tmp_path / "x.png", 1).tolist() == [[[255]]] * 3


def test_what_is_no_picture_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.png").write_text("none")
    os.mkfifo(tmp_path / "pipe.png")
    for name, words in (("text.png", "cannot be read"), ("pipe.png", "is no file"), ("gone.png", "does not exist")):
        with pytest.raises(UserError, match=rf"{name} {words}"):
            decode(tmp_path / name, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    red_above_blue().save(tmp_path / "huge.png")
    with pytest.raises(UserError, match=r"huge\.png has more than"):
        decode(tmp_path / "huge.png", 8)


def test_hidden_files_are_no_data_and_nothing_else_is_dropped_silently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (
        "owl/a.png",
        "owl/deep/b.png",
        "wren/a.png",
        "__MACOSX/._a.png",
        ".ipynb_checkpoints/a.png",
        "@eaDir/a.png",
        "astray.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        red_above_blue().save(tmp_path / name)
    for name in ("owl/._a.png", "owl/notes.txt", "owl/Thumbs.db", "owl/.DS_Store", "wren/raw.heic"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "owl" / "loop").symlink_to(tmp_path / "owl", target_is_directory=True)
    found = {name: [path.name for path in paths] for name, paths in class_folders(tmp_path).items()}
    assert found == {
        "owl": ["a.png", "b.png"],
        "wren": ["a.png"],
    }
    said = capsys.readouterr().err
    assert "1 file .txt left out, 2 files .png read" in said
    assert "1 file .heic left out, 1 file .png read" in said
    assert "1 file .png beside the class folders left out" in said


def test_folders_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        class_folders(tmp_path / "gone")
    with pytest.raises(UserError, match="no class folders"):
        class_folders(tmp_path)
    (tmp_path / "owl").mkdir()
    with pytest.raises(UserError, match=r"class 'owl' of .* has no images"):
        class_folders(tmp_path)
    for name in ("owl", "owl "):
        (tmp_path / name).mkdir(exist_ok=True)
        red_above_blue().save(tmp_path / name / "a.png")
    with pytest.raises(UserError, match="two folders called 'owl'"):
        class_folders(tmp_path)
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")  # noqa: PTH102
    with pytest.raises(UserError, match=r"caf\\xe9' is not UTF-8"):
        visible_files(tmp_path)


@pytest.mark.parametrize("inverted", [False, True])
def test_a_tiff_says_what_is_white(inverted: bool, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 8).round().astype(np.uint16)[None].repeat(8, 0)
    Image.fromarray(ramp).save(tmp_path / "x.tif", tiffinfo={262: 0 if inverted else 1})
    seen, wanted = decode(tmp_path / "x.tif", 8)[1, 3].tolist(), (ramp[0] / 257).round().tolist()
    assert seen == (wanted[::-1] if inverted else wanted)


@pytest.mark.parametrize("name", ["#recycle", "@Recycle", "$Recycle.Bin", "RECYCLER", "found.000", "@eaDir", "Thumbs.db"])
def test_what_systems_leave_behind_is_no_class(name: str) -> None:
    assert is_hidden(name)


def test_a_link_to_a_folder_that_is_not_there_is_said(tmp_path: Path, write_images: Callable[..., None]) -> None:
    write_images(tmp_path / "set" / "owl", 1, 0)
    (tmp_path / "set" / "kite").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match=r"kite is a link to .*unmounted, which is not there"):
        class_folders(tmp_path / "set")


def test_archives_beside_the_classes_are_said(
    tmp_path: Path, write_images: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "set" / "owl", 1, 0)
    (tmp_path / "set" / "kite.zip").write_bytes(b"PK")
    assert list(class_folders(tmp_path / "set")) == ["owl"]
    assert "1 file .zip beside the class folders left out" in capsys.readouterr().err


def test_names_that_cannot_be_written(tmp_path: Path, write_images: Callable[..., None]) -> None:
    write_images(tmp_path / "set" / "ow\rl", 1, 0)
    with pytest.raises(UserError, match="rename it"):
        class_folders(tmp_path / "set")


def test_a_colour_that_is_transparent_in_sixteen_bits(tmp_path: Path) -> None:
    """It is white where it stands, and a colour with its low bytes is what it is."""
    row = b"\x00" + bytes([0x12, 0x34, 0x56, 0x78, 0x9A, 0xBC]) + bytes([0x34, 0, 0x78, 0, 0xBC, 0])

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = (2).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    clear = bytes([0x12, 0x34, 0x56, 0x78, 0x9A, 0xBC])
    parts = chunk(b"IHDR", header) + chunk(b"tRNS", clear) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    both = decode(tmp_path / "a.png", 2)[:, 0]
    assert both[:, 0].tolist() == [255, 255, 255]
    assert both[:, 1].tolist() == [0x34, 0x78, 0xBC]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_colours_are_those_that_a_files_profile_means(suffix: str, tmp_path: Path) -> None:
    """A profile whose first primary is blue and whose last is red; of a damaged one nothing is taken."""
    profile = bytearray(
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"\0s\0R\0G\0B", b"\0o\0w\0n\0 ")
    )
    places = {bytes(profile[at : at + 4]): at + 4 for at in range(132, 132 + 12 * profile[131], 12)}
    red, blue = places[b"rXYZ"], places[b"bXYZ"]
    profile[red : red + 4], profile[blue : blue + 4] = profile[blue : blue + 4], profile[red : red + 4]
    for name, made in (("swapped", bytes(profile)), ("damaged", b"nothing")):
        red_above_blue().save(
            tmp_path / f"{name}.{suffix}", icc_profile=made, **({"quality": 95} if suffix in ("jpg", "webp") else {})
        )
    assert np.abs(decode(tmp_path / f"swapped.{suffix}", 16)[:, 1, 4].astype(int) - BLUE).max() < SOFT
    check_red_above_blue(decode(tmp_path / f"damaged.{suffix}", 16))


def test_a_tga_whose_fourth_byte_is_empty_is_opaque(tmp_path: Path) -> None:
    picture = red_above_blue().convert("RGBA")
    picture.putalpha(0)
    picture.save(tmp_path / "a.tga")
    check_red_above_blue(decode(tmp_path / "a.tga", 16))


def test_damaged_exif_data_are_passed_over(tmp_path: Path) -> None:
    red_above_blue().save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05nothing")
    check_red_above_blue(decode(tmp_path / "a.png", 16))
