"""A contact sheet: all rows are there, and edits that do not fit are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from genhoi import media
from genhoi.editing import contact_sheet
from genhoi.editing.contact_sheet import EditedRow, draw_contact_sheet
from genhoi.editing.crop import choose_crop
from genhoi.media import Clip


def clip(value: int, frames: int = 5, size: tuple[int, int] = (32, 48)) -> Clip:
    return Clip(torch.full((frames, *size, 3), value, dtype=torch.uint8), 12)


def colors(path: Path) -> set[tuple[int, ...]]:
    """Those of large areas."""
    with Image.open(path) as image:
        counts = image.convert("RGB").getcolors(1 << 24)
    assert counts is not None
    return {color for count, color in counts if count > 2000}


def test_source_mask_and_edits_are_in_it(tmp_path: Path) -> None:
    mask = torch.zeros(5, 32, 48, dtype=torch.bool)
    mask[:, :, :24] = True
    picture = torch.full((20, 30, 3), 77, dtype=torch.uint8)
    edits = [EditedRow([picture], clip(200), "a"), EditedRow([picture, picture], clip(230), "b")]
    draw_contact_sheet(tmp_path / "sheet.png", clip(40), mask, edits)
    assert {(40,) * 3, (128,) * 3, (200,) * 3, (230,) * 3, (77,) * 3} <= colors(
        tmp_path / "sheet.png"
    )
    with pytest.raises(FileExistsError):
        draw_contact_sheet(tmp_path / "sheet.png", clip(40), mask, edits)
    for other in (clip(200, frames=4), clip(200, size=(32, 32))):
        with pytest.raises(ValueError, match=r"edits: got a of shape .* wanted \(5, 32, 48, 3\)"):
            draw_contact_sheet(
                tmp_path / "other.png", clip(40), mask, [EditedRow([picture], other, "a")]
            )
    assert not (tmp_path / "other.png").exists()


def test_the_box_has_rows_of_its_own(tmp_path: Path) -> None:
    """And the words stand where they belong: "object" under the picture, the edit's name beside."""
    mask = torch.zeros(5, 64, 96, dtype=torch.bool)
    mask[:, 20:40, 30:50] = True
    picture = torch.full((20, 30, 3), 77, dtype=torch.uint8)
    edits = [EditedRow([picture], clip(200, size=(64, 96)), "edited")]
    source = clip(40, size=(64, 96))
    crop = choose_crop(mask, native=(32, 32))
    assert not crop.is_whole
    heights = []
    for chosen in (None, crop):
        path = tmp_path / "sheet.png"
        draw_contact_sheet(path, source, mask, edits, crop=chosen, overwrite=True)
        with Image.open(path) as image:
            heights.append(image.height)
    assert heights[1] > 1.6 * heights[0]
    axes = [SimpleAxes() for _ in range(3)]
    row = contact_sheet._Row("edited", edits[0].clip.frames[:2], [picture])
    contact_sheet._draw_row(axes, row)
    assert axes[0].said == ["edited", "object"] and axes[1].said == []


class SimpleAxes:
    """Keeps the words that are written beside an axis."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def set_ylabel(self, text: str, **_: object) -> None:
        self.said.append(text)

    set_xlabel = set_ylabel

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def test_the_command_fits_the_source_to_the_edits(tmp_path: Path) -> None:
    media.write_clip(tmp_path / "source.mp4", clip(40, frames=7, size=(64, 96)))
    media.write_mask(tmp_path / "mask.mp4", torch.ones(7, 64, 96, dtype=torch.bool))
    media.write_clip(tmp_path / "edited.mp4", clip(200))
    media.write_image(tmp_path / "mug.png", torch.full((20, 30, 3), 77, dtype=torch.uint8))
    paths = {"source": "source.mp4", "mask": "mask.mp4", "out": "sheet.png"}
    arguments = [
        word for name, file in paths.items() for word in (f"--{name}", f"{tmp_path}/{file}")
    ]
    arguments += ["--edited", f"{tmp_path}/mug.png", f"{tmp_path}/edited.mp4"]
    result = CliRunner().invoke(contact_sheet.main, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "sheet.png").is_file()
    again = CliRunner().invoke(contact_sheet.main, arguments)
    assert again.exit_code == 1 and "exists already" in again.output
