"""A user's own pictures with captions: a folder, as diffusers' training scripts and `imagefolder` of datasets read it.

    FOLDER/metadata.jsonl    one JSON object a line: {"file_name": "cat.png", "text": "a cat"}; or else
    FOLDER/cat.png           and beside it, perhaps,
    FOLDER/cat.txt           its caption
A picture without a caption has the empty prompt. Pictures are scaled until the shorter side fits, and cropped around
their middle. Beside it how a drawn picture is written.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

METADATA = "metadata.jsonl"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
WRITTEN = (".png", ".jpg", ".jpeg", ".webp")
CAPTIONS = ("text", "caption", "prompt")  # keys under which a line of metadata may hold the caption


class Pictures(NamedTuple):
    """n picture files, their n captions, and the height and width in pixels that they are read at."""

    files: list[Path]
    captions: list[str]
    height: int
    width: int

    def read(self, rows: list[int]) -> Tensor:
        """Some of the pictures, (b, 3, height, width) fp32 in [-1, 1]."""
        return torch.stack([self._read(self.files[row]) for row in rows])

    def _read(self, file: Path) -> Tensor:
        picture = _open(file).convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")  # what is transparent becomes white
        picture = Image.alpha_composite(white, picture).convert("RGB")
        picture = ImageOps.fit(picture, (self.width, self.height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


class InMemory(NamedTuple):
    """As `Pictures`: n pictures (n, 3, height, width) in [-1, 1] that are there already."""

    x: Tensor
    captions: list[str]

    @property
    def height(self) -> int:
        return self.x.shape[2]

    @property
    def width(self) -> int:
        return self.x.shape[3]

    def read(self, rows: list[int]) -> Tensor:
        return self.x[rows]


def read_folder(folder: Path, height: int, width: int) -> Pictures:
    """Find the pictures and captions of a folder and look at every picture's size.

    Raises ValueError, one line with the file, for a folder without pictures, metadata that names a missing picture, a
    file that is no picture, and pictures smaller than height x width.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give --data a folder of pictures")
    captioned = _metadata(folder) if (folder / METADATA).exists() else _beside(folder)
    if not captioned:
        raise ValueError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    for file in captioned:
        w, h = _open(file, whole=False).size
        if h < height or w < width:
            raise ValueError(
                f"{file} has {w} x {h} pixels, training asks for at least {width} x {height}; "
                "enlarge it, leave it out, or give a smaller --size"
            )
    return Pictures(list(captioned), list(captioned.values()), height, width)


def _metadata(folder: Path) -> dict[Path, str]:
    captioned = {}
    for number, line in enumerate((folder / METADATA).read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{folder / METADATA}:{number}"
        if not line.strip():
            continue
        try:
            facts = json.loads(line)
            file = folder / facts["file_name"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'{where}: no JSON object with a "file_name"') from None
        if not file.is_file():
            raise ValueError(f"{where}: there is no picture {file}")
        captioned[file] = str(next((facts[key] for key in CAPTIONS if facts.get(key) is not None), ""))
    return captioned


def _beside(folder: Path) -> dict[Path, str]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    captions = [file.with_suffix(".txt") for file in files]
    return {
        file: caption.read_text(encoding="utf-8").strip() if caption.exists() else ""
        for file, caption in zip(files, captions, strict=True)
    }


def _open(file: Path, whole: bool = True) -> Image.Image:
    """A picture, turned as its camera was held; with `whole` its pixels too."""
    try:
        picture = Image.open(file)
        if whole:
            picture.load()
        return ImageOps.exif_transpose(picture) if whole else picture
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} cannot be read as a picture ({error}); repair it or leave it out") from None


def check_name(file: Path) -> None:
    """Raise ValueError for a file that no picture can be written to; to be asked before anything is drawn."""
    if file.suffix.lower() not in WRITTEN or file.is_dir():
        raise ValueError(f"{file} is no png, jpg or webp file, to which a picture could be written")


def save(picture: Image.Image, file: Path) -> None:
    """Write a picture beside its place and move it there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        picture.save(Path(scratch) / file.name)
        os.replace(Path(scratch) / file.name, file)
