"""Writes flash_signatures.json: how the functions are called that the flash backend calls.

Signatures are parsed from the published sources, which are not imported: no GPU and no CUDA are
needed. Into an empty folder:

    FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE pip download --no-deps --no-build-isolation \
        --no-binary flash-attn flash-attn
    pip download --no-deps --pre flash-attn-4
    pip download --no-deps fa3-fwd

(the first runs the package's setup.py, which wants torch, psutil and packaging), then

    python tests/support/flash_signatures.py FOLDER
"""

from __future__ import annotations

import ast
import json
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

JSON = Path(__file__).with_suffix(".json")

# Archive's name up to the version, file in it, functions.
WANTED = (
    (
        "flash_attn",
        "flash_attn/flash_attn_interface.py",
        ("_flash_attn_forward", "_flash_attn_backward"),
    ),
    (
        "flash_attn",
        "hopper/flash_attn_interface.py",
        ("_flash_attn_forward", "_flash_attn_backward"),
    ),
    ("flash_attn", "flash_attn/cute/interface.py", ("_flash_attn_fwd", "_flash_attn_bwd")),
    ("fa3_fwd", "fa3_fwd_interface.py", ("_flash_attn_forward", "_flash_attn_backward")),
    ("flash_attn_4", "flash_attn/cute/interface.py", ("_flash_attn_fwd", "_flash_attn_bwd")),
)


def read(archive: Path, file: str) -> str:
    """Text of a file in a wheel, or in an sdist below its one folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            return opened.read(file).decode()
    with tarfile.open(archive) as opened:
        folder = archive.name.removesuffix(".tar.gz")
        member = opened.extractfile(f"{folder}/{file}")
        assert member is not None, file
        return member.read().decode()


def parameters(function: ast.FunctionDef) -> Iterator[dict[str, Any]]:
    """Name of each parameter, and its default as it is written, if it has one."""
    a = function.args
    assert not (a.posonlyargs or a.kwonlyargs or a.vararg or a.kwarg), function.name
    required = len(a.args) - len(a.defaults)
    for i, argument in enumerate(a.args):
        entry: dict[str, Any] = {"name": argument.arg}
        if i >= required:
            entry["default"] = ast.unparse(a.defaults[i - required])
        yield entry


def signatures(folder: Path) -> Iterator[dict[str, Any]]:
    """An entry for each wanted function."""
    for package, file, functions in WANTED:
        (archive,) = folder.glob(f"{package}-[0-9]*")
        version = archive.name.removesuffix(".tar.gz").split("-")[1]
        bodies = ast.parse(read(archive, file)).body
        for name in functions:
            (definition,) = (x for x in bodies if isinstance(x, ast.FunctionDef) and x.name == name)
            yield {
                "package": package.replace("_", "-"),
                "version": version,
                "file": file,
                "function": name,
                "parameters": list(parameters(definition)),
            }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    # A parameter a line would be four times as long.
    lines = ",\n".join(json.dumps(entry) for entry in signatures(Path(sys.argv[1])))
    JSON.write_text(f"[\n{lines}\n]\n")
