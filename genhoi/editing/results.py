"""What comes out of an edit: its files, each written as a whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genhoi.media import Clip, atomic_path, check_target, write_clip, write_side_by_side
from genhoi_kernels.files import remove_unfinished

__all__ = ["Targets", "write_results"]


class Targets:
    """Names the files of an edit in a folder, and says whether they may be written.

    Args:
        folder: made when something is written.
        overwrite: replace results that are there.

    Raises:
        FileExistsError: there are results and `overwrite` is False.
        IsADirectoryError: a folder has the name of a result.
    """

    def __init__(self, folder: Path, *, overwrite: bool) -> None:
        self.folder = folder
        self.edited = folder / "edited.mp4"
        self.side_by_side = folder / "side_by_side.mp4"
        self.sheet = folder / "sheet.png"
        self.attention = folder / "attention.png"
        self.record = folder / "edit.json"
        self.preview = folder / "preview.png"
        self.parts = folder / ".unfinished"
        # The record comes last: without it, results beside unfinished windows are of a program that
        # was killed while writing them. Parts are compared with this job's before anything is done.
        killed = self.parts.is_dir() and not self.record.exists()
        self.overwrite = overwrite or killed
        for path in (self.edited, self.side_by_side, self.sheet, self.attention, self.record):
            if path.is_dir():
                raise IsADirectoryError(f"--out: {path} is a folder, want a free file name")
            if path.exists() and not self.overwrite:
                raise FileExistsError(f"--out: {path} exists already; --force overwrites it")
            check_target(path, overwrite=self.overwrite)
            if killed:
                remove_unfinished(folder, target=path)

    def files(self, *, has_attention: bool) -> dict[str, str]:
        """Name the files that were written."""
        names = ["edited", "side_by_side", "sheet", "record"]
        return {name: str(getattr(self, name)) for name in names + ["attention"] * has_attention}


def write_results(
    targets: Targets,
    source: Clip,
    edited: Clip,
    record: Mapping[str, Any],
    *,
    sound: Path | None = None,
) -> None:
    """Write the edited clip, source and result side by side, and the record, in this order.

    Finished windows are removed then: the result is safe.

    Args:
        targets: the files.
        source, edited: of one size and length.
        record: for edit.json.
        sound: the file whose sound the clips get; one without sound gives none.
    """
    write_clip(targets.edited, edited, sound=sound, overwrite=targets.overwrite)
    write_side_by_side(
        targets.side_by_side, source, edited, sound=sound, overwrite=targets.overwrite
    )
    with atomic_path(targets.record, overwrite=targets.overwrite) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(targets.parts)
