"""Make the glyphs data set and write its lists: letters of whole scripts, drawn with the typefaces inside matplotlib.

Nothing is downloaded. Latin, Greek and Cyrillic letters are meta_train (64 classes), Georgian ones meta_val (16),
Armenian ones meta_test (20), so the test classes are new as scripts. 32x32 in colour; face, size, place, rotation,
shear, colours and textured background vary; every image depends on the seed, its letter and its number only.
"""

import sys
import tempfile
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets.registry import SPLITS, DatasetSpec
from utils import cli
from utils.progress import Progress
from write_file.filelist import ClassFiles, make_parser, run_script, split_folders

# One letter for each shape: of look-alikes (Latin P, Greek rho, Cyrillic er) at most one is here, in either case.
LETTERS = {
    "meta_train": "ABCEHIJKMNPQRSUVWXYZabdefgkmrtΞΣΦΨΩαβδζηθλμπςτφχДЖЙЛЦЧЩЪЫЮЯЂЉЊЋђ",
    "meta_val": "აბდეთიკლრტფქყშჩც",
    "meta_test": "ԴԶԷԸԹԻԽԾԿՃՄՇՊՌՎՔՖզձկ",
}
# Faces by name: the LastResort font beside them claims every character and draws a box.
STYLES = {"Sans": ("", "-Bold", "-Oblique", "-BoldOblique"), "Serif": ("", "-Bold", "-Italic", "-BoldItalic")}
STYLES["SansMono"] = STYLES["Sans"]
DEJAVU = [f"DejaVu{family}{style}.ttf" for family, styles in STYLES.items() for style in styles]
STIX = [f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Ita", "BolIta")]
STIX = [name.replace("GeneralIta.", "GeneralItalic.") for name in STIX]
SIZE, CANVAS = 32, 96  # drawn three times as large, then reduced


def faces(letter: str) -> list[Path]:
    """The typefaces that have the letter: STIX knows Latin, Greek and Cyrillic only."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [folder / name for name in (DEJAVU + STIX if ord(letter) < 0x0530 else DEJAVU)]


def shape(letter: str, face: Path, points: int) -> Image.Image:
    """The letter alone, white on black, cut to its bounding box."""
    font = ImageFont.truetype(str(face), points)
    left, top, right, bottom = font.getbbox(letter)
    mask = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(mask).text((1 - left, 1 - top), letter, fill=255, font=font)
    return mask


def texture(rng: np.random.Generator, colour: np.ndarray, strength: float) -> np.ndarray:
    """Noise of three scales around a colour: float (SIZE, SIZE, 3)."""
    field = np.zeros((SIZE, SIZE, 3))
    for cells, weight in ((3, 0.6), (8, 0.3), (SIZE, 0.1)):
        noise = rng.normal(size=(cells, cells, 3)).astype(np.float32)
        channels = [Image.fromarray(noise[..., c]).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for c in range(3)]
        field += weight * np.stack([np.asarray(channel) for channel in channels], axis=-1)
    return colour + strength * field


def draw(letter: str, number: int, seed: int) -> Image.Image:
    """Image `number` of a letter: RGB, SIZE x SIZE."""
    rng = np.random.default_rng([seed, ord(letter), number])
    options = faces(letter)
    mask = shape(letter, options[rng.integers(len(options))], int(rng.integers(60, 88)))
    canvas = Image.new("L", (CANVAS, CANVAS))
    shift = rng.uniform(-0.5, 0.5, 2) * np.maximum(0, CANVAS - np.array(mask.size)) * 0.5
    canvas.paste(mask, tuple(((CANVAS - np.array(mask.size)) / 2 + shift).astype(int)))
    angle, shear = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(-0.15, 0.15)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.array([[1, shear], [0, 1]])
    offset = CANVAS / 2 - matrix @ np.full(2, CANVAS / 2)
    affine = (*matrix[0], offset[0], *matrix[1], offset[1])
    canvas = canvas.transform(canvas.size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    ink = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=float)[..., None] / 255  # (S, S, 1)
    paper_colour, ink_colour = rng.uniform(0, 1, (2, 3))
    while np.abs(paper_colour - ink_colour).mean() < 0.4:
        paper_colour, ink_colour = rng.uniform(0, 1, (2, 3))
    paper, stroke = texture(rng, paper_colour, 0.1), texture(rng, ink_colour, 0.05)
    pixels = paper * (1 - ink) + stroke * ink
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8))


def class_name(letter: str) -> str:
    """A folder name that survives file systems without case: `latin_capital_letter_a`."""
    return unicodedata.name(letter).lower().replace(" ", "_")


def draw_class(letter: str, folder: Path, images: int, seed: int) -> None:
    target = folder / class_name(letter)
    target.mkdir(parents=True)
    for number in range(images):
        draw(letter, number, seed).save(target / f"{number:04d}.png")


def make(folder: Path, images: int, seed: int) -> None:
    """Draw the whole set into `folder`, split by split, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary, ProcessPoolExecutor() as pool:
        for split in SPLITS:
            if (folder / split).exists():
                continue
            work = partial(draw_class, folder=Path(temporary) / split, images=images, seed=seed)
            for _ in Progress(pool.map(work, LETTERS[split]), total=len(LETTERS[split]), desc=f"draw {split}", unit="letter"):
                pass
            (Path(temporary) / split).rename(folder / split)


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("write_glyphs_filelist", __doc__)
    parser.add_argument("--images", type=cli.count, default=200, help="images of a letter (splits that exist are kept)")
    parser.add_argument("--seed", type=cli.seed, default=0, help="seed of all that varies")
    args = parser.parse_args(argv)

    def collect(spec: DatasetSpec, data_root: Path) -> dict[str, ClassFiles]:
        make(data_root / spec.folder, args.images, args.seed)
        return split_folders(data_root / spec.folder)

    run_script("glyphs", collect, args.data_root)


if __name__ == "__main__":
    cli.exit_with_message(main)
