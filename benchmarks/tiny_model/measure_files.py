"""The rows of a measurement, kept one by one: what is measured once is not measured again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from genhoi.media import digest, read_image, write_image
from genhoi_kernels.files import whole_file

__all__ = ["Rows", "base_digest"]

Row = dict[str, Any]


def base_digest(folder: Path) -> str:
    """Hash every file of a base with its adapter, by which two models are told apart."""
    hashes = [digest(x) for x in sorted((folder, *folder.rglob("*"))) if x.is_dir()]
    return "".join(value[:16] for value in hashes)


class Rows:
    """Rows of numbers in a folder, each in a file that is whole or absent.

    Args:
        folder: of all files.
        job: plain values that every row depends on.

    Raises:
        FileExistsError: the folder holds rows of another job.
    """

    def __init__(self, folder: Path, job: Row) -> None:
        self.folder = folder
        path = folder / "job.json"
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before != job:
                differs = sorted(k for k in job | before if job.get(k) != before.get(k))
                raise FileExistsError(
                    f"out: {folder} holds a measurement with another {', '.join(differs)}; name "
                    f"another folder or remove it"
                )
            return
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")

    def get(self, name: str, make: Callable[[], Row]) -> Row:
        """Read a row, or make and keep it.

        Args:
            name: of the row.
            make: measures it; its values are numbers, None, and lists of these.
        """
        path = self.folder / "rows" / f"{name}.json"
        if not path.is_file():
            row = make()
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(row, allow_nan=False) + "\n", encoding="utf-8")
        read: Row = json.loads(path.read_text(encoding="utf-8"))
        return read

    def picture(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Read a picture, uint8 [h, w, 3], or make and keep it."""
        path = self.folder / "objects" / f"{name}.png"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, make())
        return read_image(path)
