"""A converted transformer and its adapter on disk, with the rest of a pipeline around them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from genhoi.bases.load import base_config, base_kind
from genhoi.bases.replaced import check_same_sizes
from genhoi.bases.wan_files import INDEX, has_weights, locate_base, read_json
from genhoi.media.files import check_space, size_of
from genhoi.models.adapter import GenHOIAdapter
from genhoi_kernels.files import remove_unfinished, whole_folder

__all__ = ["Surroundings", "check_out", "save_converted"]

_OURS = ("transformer", "adapter")


class Surroundings:
    """What a pipeline has beside its transformer.

    Args:
        name: the pipeline's folder, or the name of one that was downloaded.

    Raises:
        FileNotFoundError, ValueError: no such pipeline, one that lacks components, or one of
            another kind. The transformer's own weights need not be there.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        kind = base_kind(name)
        kind.check_complete(name, own_transformer=False)
        if kind.two_experts:
            raise ValueError(
                f"base: got {os.fspath(name)}, a pipeline of two transformers, wanted one with "
                f"one, for one is converted"
            )
        self.folder = locate_base(name).resolve()
        self.config = base_config(name)
        index = read_json(self.folder / INDEX)
        # A component that the pipeline does without is [null, null].
        named = [n for n, x in index.items() if isinstance(x, list) and len(x) == 2 and x[0]]
        self.components = [n for n in named if n != "transformer" and (self.folder / n).is_dir()]

    @property
    def own_weights(self) -> list[Path]:
        """Return the folder of its own transformer; none where the weights are missing."""
        folder = self.folder / "transformer"
        return [folder] if has_weights(folder) else []

    def place_in(self, folder: Path, *, final: Path, copy: bool) -> bool:
        """Put the components into a folder.

        Args:
            folder: to write in; it gets the name `final` later.
            copy: copies instead of links.

        Returns:
            Whether they are links.
        """
        if not copy:
            try:
                parent = final.parent.resolve() / final.name
                for name in self.components:
                    target = os.path.relpath(self.folder / name, parent)
                    (folder / name).symlink_to(target, target_is_directory=True)
                return True
            except OSError:  # a file system without links, or another drive
                for name in self.components:
                    (folder / name).unlink(missing_ok=True)
        check_space(final.parent, sum(size_of(self.folder / name) for name in self.components))
        for name in self.components:
            shutil.copytree(self.folder / name, folder / name)
        return False


def check_out(out: Path, *, force: bool, surroundings: Surroundings | None) -> None:
    """Check that results may be written as this folder, before the long work.

    Raises:
        FileExistsError: there are results and `force` is False, or something that is no result.
        ValueError: the folder belongs to the pipeline that is to be used.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out: {out} is a file, wanted a folder")
    if surroundings is not None and surroundings.folder in (
        own := out.resolve(),
        *own.parents,
    ):
        raise ValueError(f"out: got {out}, in the folder of the pipeline; wanted one apart")
    if not out.is_dir() or not any(out.iterdir()):
        return
    known = {*_OURS, INDEX, *(read_json(out / INDEX) if (out / INDEX).is_file() else ())}
    others = sorted(path.name for path in out.iterdir() if path.name not in known)
    if others or not all((out / name).is_dir() for name in _OURS):
        raise FileExistsError(
            f"out: {out} is a folder that this command did not write, for it "
            f"{f'holds {others[0]}' if others else 'lacks transformer/ or adapter/'}: not replaced"
        )
    if not force:
        raise FileExistsError(f"out: {out} exists already; --force overwrites it")


def save_converted(
    out: Path,
    transformer: Any,
    adapter: GenHOIAdapter,
    surroundings: Surroundings | None,
    *,
    copy: bool,
) -> bool:
    """Write OUT/transformer and OUT/adapter, and with surroundings a whole pipeline.

    The folder appears when all of it is written. One that is there already is replaced.

    Args:
        out: see `check_out`.
        transformer, adapter: from `from_official`.
        surroundings: of the pipeline whose other components are taken; None for none.
        copy: copy them instead of linking to them.

    Returns:
        Whether other components are links.

    Raises:
        OSError: the disk is too small, or cannot be written.
        ValueError: the transformer has other sizes than the pipeline's own.
    """
    if surroundings is not None:
        config = dict(transformer.config) | {"_class_name": type(transformer).__name__}
        check_same_sizes(config, surroundings.config, what="the converted one")
    remove_unfinished(out.absolute().parent, target=out)
    weights = [*transformer.state_dict().values(), *adapter.state_dict().values()]
    check_space(out.absolute().parent, sum(x.nbytes for x in weights))
    linked = False
    with whole_folder(out.absolute()) as folder:
        if surroundings is not None:
            linked = surroundings.place_in(folder, final=out.absolute(), copy=copy)
        transformer.save_pretrained(folder / "transformer")
        adapter.save_pretrained(folder / "adapter")
        for path in [x for part in _OURS for x in (folder / part).glob("*.safetensors")]:
            # safetensors' own files only their owner may read.
            shutil.copymode(folder / "transformer" / "config.json", path)
        if surroundings is not None:
            shutil.copyfile(surroundings.folder / INDEX, folder / INDEX)
    return linked
