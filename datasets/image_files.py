"""Which files are images, which folders are classes, and one way to read an image file."""

import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from utils.errors import UserError
from utils.names import tidy_class

RULE = 5  # what `decode` makes of a file; whoever changes it counts up, and caches are made anew
PHOTOS = (
    ".png .apng .jpg .jpeg .jpe .jfif .bmp .dib .webp .gif .tif .tiff .avif .heic .heif .jp2 .ppm .pgm .pbm .pnm .tga"
).split()
IMAGE_SUFFIXES = {suffix for suffix in PHOTOS if Image.registered_extensions().get(suffix) in Image.OPEN}  # by this Pillow
LEFT_BEHIND = {  # by systems, network drives and editors, in small letters
    "__macosx", "__pycache__", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin",
    "system volume information", "network trash folder", "temporary items", "lost+found", "found.000",
    "thumbs.db", "desktop.ini",
}  # fmt: skip
ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"}
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE = (255, 255, 255)  # the ground under what is transparent


def is_hidden(name: str) -> bool:
    """Whether a file or folder is no data: what systems and editors leave behind (`.ipynb_checkpoints`, `__MACOSX`, `._x`)."""
    return name.startswith(".") or name in ("RECYCLER", "Icon\r") or name.lower() in LEFT_BEHIND


def visible_files(folder: Path) -> list[Path]:
    """All files below a folder that are not hidden, sorted; folders behind links are looked into once.

    Raises `UserError` for a name that is not UTF-8, and for a folder that is not there.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; expected a folder with images in it")
    if not folder.is_dir():
        raise UserError(f"folder {folder} is missing")
    return sorted(_walk(folder, set()))


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    place = folder.stat()
    if (place.st_dev, place.st_ino) in seen:
        return
    seen.add((place.st_dev, place.st_ino))
    for entry in folder.iterdir():
        if is_hidden(entry.name):
            continue
        check_name(entry)
        if entry.is_dir():
            yield from _walk(entry, seen)
        else:
            yield entry


def check_name(path: Path) -> None:
    """Raise `UserError` for a file name that no list can hold."""
    try:
        path.name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the file name {os.fsencode(path)!r} is not UTF-8: rename it") from error
    if any(ord(sign) < 32 for sign in path.name):
        raise UserError(f"the file name {str(path)!r} holds a line's end or another sign that cannot be written: rename it")


def images_of(folder: Path, name: str = "") -> list[Path]:
    """The image files below a folder, sorted, and a note on stderr about the files that are none.

    Raises `UserError` where there is none, naming the files that this program does not read, and the folder by `name`.
    """
    files = visible_files(folder)
    found = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    others = [file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES]
    if not found:
        there = f", only {kinds(others)}" if others else ""
        raise UserError(
            f"{name or folder} has no images{there}: add some or remove its folder; expected files that end in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    if others:
        print(f"note: {folder}: {kinds(others)} left out, {kinds(found)} read", file=sys.stderr)
    return found


def kinds(files: Sequence[Path]) -> str:
    """Files by their endings, in words: `3 files .heic`."""
    counts = Counter(file.suffix.lower() or "without an ending" for file in files)
    return ", ".join(f"{number} file{'s' * (number > 1)} {ending}" for ending, number in counts.most_common())


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """The visible folders of `folder` as classes: name -> the images below it, both sorted.

    Raises `UserError` for a missing folder, for one without folders, for a class without images, and for two folders of
    one name, and for a link to a folder that is not there; images and archives that lie beside the folders belong to no class,
    which a note on stderr says.
    """
    if not folder.is_dir():
        raise UserError(f"folder {folder} is missing: expected {folder}/<class>/<image> (DFL2Ldata/README.md shows each set's)")
    entries = sorted(entry for entry in folder.iterdir() if not is_hidden(entry.name))
    for entry in entries:
        check_name(entry)
        if entry.is_symlink() and not entry.exists() and entry.suffix.lower() not in PHOTOS:
            raise UserError(f"{entry} is a link to {entry.readlink()}, which is not there: bring it back, or remove the link")
    classes: dict[str, list[Path]] = {}
    for entry in (entry for entry in entries if entry.is_dir()):
        name = tidy_class(entry.name, str(folder))
        if name in classes:
            raise UserError(f"{folder} has two folders called {name!r}: put their images into one")
        classes[name] = images_of(entry, f"class {name!r} of {folder}")
    if not classes:
        raise UserError(f"folder {folder} has no class folders: expected {folder}/<class>/<image>")
    astray = [entry for entry in entries if not entry.is_dir() and entry.suffix.lower() in ARCHIVES.union(PHOTOS)]
    if astray:
        print(f"note: {folder}: {kinds(astray)} beside the class folders left out", file=sys.stderr)
    return dict(sorted(classes.items()))


def decode(path: Path, size: int, center_crop: float | None = None) -> np.ndarray:
    """Read an image file of any size as uint8 (3, size, size), the way a viewer shows it.

    Turned as its EXIF data say, in the colours that its ICC profile means; what is transparent on white; 16 bits scaled to 8;
    of an animation the first picture.
    `center_crop`: the middle square alone, whose side is this part of the shorter one; `None`: the whole image, squashed.
    Raises `UserError` naming a file that cannot be read, or whose numbers have no known white.
    """
    with opened(path) as picture:
        return shrink(picture, size, f"image {path}", center_crop)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image file as Pillow opens it. Raises `UserError` naming a file that cannot be read, in the block too."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"image {path} is no file: replace or remove it")
        content = BytesIO(path.read_bytes())
        with Image.open(content) as file:
            if file.format == "PNG":  # has sums of its parts, which reading alone does not look at
                file.verify()
                content.seek(0)
                file = Image.open(content)
            yield file
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(
            f"image {path} does not exist: if it stands in a list, write the list again with write_file/"
        ) from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UserError(f"image {path} has more than {limit} million pixels: make it smaller") from error
    except UnidentifiedImageError as error:
        raise UserError(f"image {path} cannot be read: it is empty, or no image that this program knows") from error
    except Exception as error:  # a damaged file makes Pillow's readers raise whatever comes
        raise UserError(f"image {path} cannot be read ({error}): replace or remove it") from error


def shrink(picture: Image.Image, size: int, source: str, center_crop: float | None = None) -> np.ndarray:
    """An opened picture as `decode` gives it, uint8 (3, size, size). Raises `UserError` naming `source`."""
    tags = getattr(picture, "tag_v2", {})  # of a TIFF
    if picture.mode == "L" and tags.get(SAMPLE_FORMAT, (1,))[0] != 1:
        raise UserError(f"{source} has signed numbers, whose white nobody knows: save it with 8 bits")
    white = 2 ** tags.get(BITS, (16,))[0] - 1
    _scale_transparency(picture)
    profile = picture.info.get("icc_profile")
    opaque = _as_bytes(_upright(picture), picture.format, white, tags.get(PHOTOMETRIC) == 0, source)
    image = _in_srgb(opaque, profile).convert("RGB")
    if center_crop or image.size != (size, size):
        middle = _middle(*image.size, center_crop) if center_crop else None
        image = image.resize((size, size), Image.Resampling.BILINEAR, middle)
    return np.asarray(image).transpose(2, 0, 1)


def _middle(width: int, height: int, part: float) -> tuple[float, float, float, float]:
    """The square in an image's middle whose side is a part of the shorter one: left, upper, right, lower."""
    side = part * min(width, height)
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF data say, where they can be read; of a TGA without bits of transparency none."""
    if picture.format == "TGA" and picture.mode == "RGBA" and not picture.getchannel("A").getextrema()[1]:
        picture = picture.convert("RGB")  # all of it transparent: the fourth byte was left empty
    picture.load()  # whose damage is no matter of the EXIF data
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # whatever damaged data provoke, which viewers pass over, too
        return picture


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The colours that a file's ICC profile means, as a screen's; without a profile, or with a damaged one, as they are."""
    if not profile or image.mode not in ("RGB", "L", "CMYK"):
        return image
    try:
        own = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(own):
            return image
        return ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def _scale_transparency(picture: Image.Image) -> None:
    """Bring the colour that is transparent in a PNG of 2, 4 or 16 bits to the 8 bits of the pixels, which Pillow forgets."""
    clear, raw = picture.info.get("transparency"), [args for *_, args in getattr(picture, "tile", [])]
    if picture.format == "PNG" and isinstance(clear, tuple) and raw == ["RGB;16B"]:
        picture.info["transparency"] = tuple(part >> 8 for part in clear)
    if picture.format == "PNG" and isinstance(clear, int) and raw in (["L;2"], ["L;4"]):
        picture.info["transparency"] = clear * 255 // (2 ** int(raw[0][-1]) - 1)


def _as_bytes(image: Image.Image, kind: str | None, white: int, inverted: bool, source: str) -> Image.Image:
    """The same picture with 8 opaque bits a channel; `white` is that of 16-bit numbers, or black where they are `inverted`."""
    wide = image.mode == "I" and kind in ("PNG", "PPM")  # 16 bits, as Pillow reads them there
    if image.mode in SIXTEEN_BITS or wide:
        values = np.asarray(image).astype(np.float64)
        if "transparency" in image.info:
            values[values == image.info["transparency"]] = float(white)
        values = white - values if inverted else values
        return Image.fromarray((values * (255 / white)).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(f"{source} has numbers of Pillow's mode {image.mode}, whose white nobody knows: save it with 8 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or image.has_transparency_data:
        picture = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        ground = Image.new("RGBA", picture.size, (*WHITE, 255))
        return Image.alpha_composite(ground, picture).convert("RGB")
    return image


def read_images(paths: Sequence[Path], size: int) -> torch.Tensor:
    """Image files of any size as uint8 (M, 3, size, size). Raises `UserError` naming a file that cannot be read."""
    return torch.stack([torch.from_numpy(decode(path, size).copy()) for path in paths])
