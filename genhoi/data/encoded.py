"""A dataset encoded once: what a model trains on, as arrays on disk.

Encoding every clip at every step would cost more than the step. A folder holds one memory-mapped
float16 array for each kind of tensor, and meta.json; it appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from genhoi.bases.base import Base
from genhoi.data.sample import HOIDataset, HOISample
from genhoi.media import fit_image
from genhoi.media.files import one_after_the_other
from genhoi_kernels.files import remove_unfinished, whole_folder

__all__ = ["EncodedClips", "Given", "conditions_for", "encode_dataset"]

Given = Literal["none", "first", "first_last"]

_META = "meta.json"
_VERSION = 1


class EncodedClips:
    """Reads a folder that `encode_dataset` made.

    Args:
        folder: of the arrays.

    Attributes:
        names: of the samples.
        text: [P, tokens, text_dim], one for each prompt that occurs.

    Raises:
        FileNotFoundError, ValueError: no such folder, or one of another version.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / _META
        if not path.is_file():
            raise FileNotFoundError(f"latents: there is no {path}")
        meta = json.loads(path.read_text(encoding="utf-8"))
        if meta.get("version") != _VERSION:
            raise ValueError(
                f"latents: {path} has version {meta.get('version')}, wanted {_VERSION}; encode anew"
            )
        self.fingerprint: str = meta["fingerprint"]
        self.names: list[str] = meta["names"]
        self._arrays: dict[str, Any] = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in meta["arrays"]
        }
        self.text = torch.from_numpy(np.array(self._arrays["text"]))

    def __len__(self) -> int:
        return len(self.names)

    def has(self, name: str) -> bool:
        """Tell whether it holds an array of that name."""
        return name in self._arrays

    def take(self, name: str, indices: Sequence[int]) -> Tensor:
        """Read rows of an array, as float32.

        Args:
            name: "clean" [n, C, f, h, w], the clip's latents; "condition_none", "condition_first",
                "condition_first_last" [n, 4 + C, f, h, w], the condition with no frame given, the
                first, first and last; "object" [n, C, 1, h, w]; "image_..." [n, tokens, dim], of
                the image encoder for each condition, where the base has one.
            indices: of the samples.

        Raises:
            ValueError: there is no such array.
        """
        if name not in self._arrays:
            raise ValueError(f"latents: got no {name}, wanted it among {sorted(self._arrays)}")
        rows = np.stack([self._arrays[name][i] for i in indices])
        return torch.from_numpy(rows).float()

    def texts(self, indices: Sequence[int]) -> Tensor:
        """Read the samples' texts, [len(indices), tokens, text_dim]."""
        return self.text[torch.from_numpy(self._arrays["text_of"][list(indices)].astype(np.int64))]


def encode_dataset(
    base: Base,
    dataset: HOIDataset,
    folder: Path,
    *,
    given: Sequence[Given],
    workers: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> EncodedClips:
    """Encode every sample, or take a folder where just this has been done.

    Of several programs that start at once, one encodes and the others wait.

    Args:
        base: whose codec and encoders are used.
        dataset: all samples of one length and size.
        folder: of the result.
        given: which conditions to make. A folder that has others beside them is taken too.
        workers: processes that read or draw samples; 0 for none beside this one.
        progress: called with (done, of how many).

    Raises:
        FileExistsError: the folder holds something else.
        ValueError: an empty dataset, or samples of several sizes.
    """
    if len(dataset) == 0:
        raise ValueError("dataset: got no sample, wanted at least one")
    if not folder.exists():
        with one_after_the_other(folder):
            if not folder.exists():
                _encode_new(base, dataset, folder, given, workers, progress)
    clips = EncodedClips(folder)
    if clips.fingerprint not in _fingerprints(base, dataset, given):
        raise FileExistsError(
            f"latents: {folder} was encoded from other data or settings; name another folder or "
            f"remove it"
        )
    return clips


def _encode_new(
    base: Base,
    dataset: HOIDataset,
    folder: Path,
    given: Sequence[Given],
    workers: int,
    progress: Callable[[int, int], object] | None,
) -> None:
    """Make the folder, whole or not at all."""
    remove_unfinished(folder.parent, target=folder)
    with whole_folder(folder) as unfinished:
        job = _fingerprint(base, dataset, given)
        _encode_all(base, dataset, unfinished, job, given, workers, progress)


def _fingerprint(base: Base, dataset: HOIDataset, given: Sequence[Given]) -> str:
    codec = f"{type(base).__name__} {'' if base.frames_apart else base.about}"
    text = json.dumps([_VERSION, codec, dataset.fingerprint(), sorted(set(given))])
    return hashlib.sha256(text.encode()).hexdigest()


def _fingerprints(base: Base, dataset: HOIDataset, given: Sequence[Given]) -> set[str]:
    """List the fingerprints of all folders that have these conditions."""
    others = [name for name in get_args(Given) if name not in given]
    more = (some for count in range(len(others) + 1) for some in combinations(others, count))
    return {_fingerprint(base, dataset, [*given, *some]) for some in more}


@torch.no_grad()
def _encode_all(
    base: Base,
    dataset: HOIDataset,
    folder: Path,
    job: str,
    given: Sequence[Given],
    workers: int,
    progress: Callable[[int, int], object] | None,
) -> None:
    arrays: dict[str, Any] = {}
    names: list[str] = []
    prompts: dict[str, int] = {}
    texts: list[Tensor] = []
    text_of = np.zeros(len(dataset), np.int32)
    for i, sample in enumerate(_samples(dataset, workers)):
        names.append(sample.name)
        text_of[i] = prompts.setdefault(sample.prompt, len(prompts))
        if len(prompts) > len(texts):  # now, for the base may refuse it
            texts.append(base.encode_text(sample.prompt))
        for name, value in _encode(base, sample, given):
            if name not in arrays:
                arrays[name] = np.lib.format.open_memmap(
                    folder / f"{name}.npy", "w+", np.float16, (len(dataset), *value.shape)
                )
            if arrays[name].shape[1:] != tuple(value.shape):
                raise ValueError(
                    f"dataset: {sample.name} gives {name} of shape {tuple(value.shape)}, wanted "
                    f"{arrays[name].shape[1:]} as the first sample; give all clips one size"
                )
            arrays[name][i] = value.half().cpu().numpy()
        if progress is not None:
            progress(i + 1, len(dataset))
    for array in arrays.values():
        array.flush()
    np.save(folder / "text.npy", torch.cat(texts).float().cpu().numpy())
    np.save(folder / "text_of.npy", text_of)
    meta = {
        "version": _VERSION,
        "fingerprint": job,
        "arrays": [*arrays, "text", "text_of"],
        "names": names,
    }
    (folder / _META).write_text(json.dumps(meta) + "\n", encoding="utf-8")


class _Indexed(Dataset[HOISample]):
    """Makes a dataset what torch's loader wants."""

    def __init__(self, dataset: HOIDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> HOISample:
        return self.dataset[index]


def _samples(dataset: HOIDataset, workers: int) -> Iterator[HOISample]:
    if workers == 0:
        return iter(dataset)
    # Processes of their own, not forks: forking a process that has computed with OpenMP may hang.
    loader = DataLoader(
        _Indexed(dataset),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn",
        prefetch_factor=4,
    )
    return iter(loader)


def _encode(base: Base, sample: HOISample, given: Sequence[Given]) -> Iterator[tuple[str, Tensor]]:
    frames = sample.clip.frames
    yield "clean", base.encode(frames)[0]
    size = (sample.clip.height, sample.clip.width)
    yield "object", base.encode(fit_image(sample.object, size)[None])[0]
    for which in sorted(set(given)):
        condition = base.model.build_condition(
            frames,
            sample.mask,
            base.encode,
            first_frame=None if which == "none" else frames[0],
            last_frame=frames[-1] if which == "first_last" else None,
        )
        yield f"condition_{which}", condition.channels[0]
        image = base.encode_image(condition.first_image, condition.last_image)
        if image is not None:
            yield f"image_{which}", image.flatten(0, 1)


def conditions_for(base: Base, given: Collection[str]) -> tuple[Given, ...]:
    """Choose the conditions to encode, so that these frames can be given.

    A base that encodes every latent frame by itself needs few: `objective.given_condition`
    puts the others together. The last frame alone is no latent frame, so that has to be encoded.

    Args:
        base: whose codec is used.
        given: names of `genhoi.training.config.GivenFrames`.
    """
    names: tuple[Given, ...] = get_args(Given)
    if not base.frames_apart:
        return tuple(name for name in names if name in given)
    return tuple(name for name in names if name == "none" or name in set(given) - {"first"})
