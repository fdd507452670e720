"""Clips, masks and images: in and out of files.

A clip is a `Clip`: uint8 frames [F, H, W, 3] and a frame rate. A mask is a bool tensor [F, H, W].
An image is a uint8 tensor [H, W, 3]. Videos and GIFs go through PyAV, still images through Pillow.

Every write is atomic: it goes to a temporary name in the target's own folder and takes the final
name only when it is complete, so an interrupted program leaves nothing half-written.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Clip",
    "atomic_path",
    "check_target",
    "count_frames",
    "digest",
    "fit_image",
    "read_clip",
    "read_image",
    "read_mask",
    "resize_clip",
    "resize_mask",
    "write_clip",
    "write_image",
    "write_mask",
]

PathLike = str | os.PathLike[str]
ResizeMode = Literal["crop", "exact"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
BACKGROUND = 128
DEFAULT_FPS = Fraction(24)
MASK_THRESHOLD = 127

_BT709 = 1
_MAX_GIF_FPS = 50


@dataclass(frozen=True)
class Clip:
    """Frames of a video and their rate.

    Args:
        frames: uint8 [F, H, W, 3], RGB, at least one frame.
        fps: frames a second; kept as an exact `Fraction`.

    Raises:
        TypeError: `frames` is not a uint8 tensor.
        ValueError: `frames` has another shape or is empty, or `fps` is not positive.
    """

    frames: Tensor
    fps: Fraction | float = DEFAULT_FPS

    def __post_init__(self) -> None:
        """Check the frames and make the rate exact."""
        if not isinstance(self.frames, Tensor) or self.frames.dtype != torch.uint8:
            got = getattr(self.frames, "dtype", type(self.frames).__name__)
            raise TypeError(f"frames: got {got}, want a uint8 tensor [F, H, W, 3]")
        shape = tuple(self.frames.shape)
        if len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise ValueError(f"frames: got shape {shape}, want [F, H, W, 3] with no size zero")
        object.__setattr__(self, "fps", _rate(self.fps))

    @property
    def num_frames(self) -> int:
        """Number of frames F."""
        return self.frames.shape[0]

    @property
    def height(self) -> int:
        """Rows of a frame, in pixels."""
        return self.frames.shape[1]

    @property
    def width(self) -> int:
        """Columns of a frame, in pixels."""
        return self.frames.shape[2]


# ------------------------------------------------------------------------------------------ reading


def read_clip(
    path: PathLike, *, max_frames: int | None = None, fps: Fraction | float | None = None
) -> Clip:
    """Read a clip from a video, a GIF, a folder of images or a single image.

    A folder's images are taken in natural order of their names (frame_2 before frame_10). A video's
    stored rotation is applied. A clip with a varying frame rate keeps all its frames and gets the
    average rate.

    Args:
        path: the file or folder.
        max_frames: read no more than so many frames from the start.
        fps: the rate to give the clip; default: the file's own, or 24 for images.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is not readable, holds no frame, or its images differ in size.
    """
    path = _existing(path, "clip")
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames: got {max_frames}, want at least 1")
    if _is_video(path):
        stored, frames = _read_video(path, max_frames)
    else:
        stored, frames = DEFAULT_FPS, _read_images(path, max_frames)
    return Clip(torch.from_numpy(frames), fps if fps is not None else stored)


def read_image(path: PathLike) -> Tensor:
    """Read a still image as uint8 [H, W, 3]; transparency is composited over grey 128.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is not an image.
    """
    path = _existing(path, "image")
    return torch.from_numpy(_load_rgb(path, background=BACKGROUND))


def read_mask(path: PathLike, *, like: Clip | None = None, max_frames: int | None = None) -> Tensor:
    """Read a mask as bool [F, H, W]: True where the mean of red, green and blue is above 127.

    The threshold keeps out the faint noise that video compression leaves in black areas.
    Transparent pixels of an image are outside.

    Args:
        path: a video, GIF, folder of images or single image.
        like: the clip that the mask belongs to. A single frame is repeated for all its frames, and
            another frame size is resized to the clip's (nearest neighbour).
        max_frames: read no more than so many frames from the start.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is not readable, or has neither one frame nor as many as `like`.
    """
    path = _existing(path, "mask")
    if _is_video(path):
        # Frame by frame: 80 seconds of RGB would need three times the memory of the mask.
        planes = [_bright(frame) for frame in _decode(path, max_frames)]
    else:
        planes = [
            _bright(_load_rgb(p, background=0)) for p in _image_paths(path)[slice(max_frames)]
        ]
    _same_sizes(path, [p.shape for p in planes])
    mask = torch.from_numpy(np.stack(planes))
    return mask if like is None else _match(mask, like, path)


def count_frames(path: PathLike) -> int:
    """Count the frames of a video, GIF, folder of images or single image without decoding them.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is not readable.
    """
    path = _existing(path, "clip")
    if not _is_video(path):
        return len(_image_paths(path))
    with _open_video(path) as container:
        try:
            return sum(packet.size > 0 for packet in container.demux(video=0))
        except _pyav().FFmpegError as error:
            raise ValueError(f"{path}: cannot read this video to its end: {error}") from error


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder, in hexadecimal."""
    found = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    for file in files:
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()


# ------------------------------------------------------------------------------------------ writing


def write_clip(path: PathLike, clip: Clip, *, overwrite: bool = False) -> Path:
    """Write a clip as a video, a GIF or a folder of images.

    The name chooses: .mp4 (H.264), .webm (VP9), .gif, or no suffix for a folder of PNG files.
    Every format reads back with the size that went in. Videos with even sides use yuv420p, which
    every player shows; yuv420p cannot hold an odd side, so those use yuv444p. GIFs hold 256 colours
    and at most 50 frames a second.

    Args:
        path: the target; its suffix chooses the format.
        clip: what to write.
        overwrite: replace an existing target. A folder is replaced only if it holds nothing but
            images.

    Returns:
        The target as a `Path`.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
        ValueError: the suffix is unknown, or the rate does not fit the format.
    """
    path = Path(path)
    writer = {
        ".mp4": _write_video,
        ".webm": _write_video,
        ".gif": _write_gif,
        "": _write_folder,
    }.get(path.suffix.lower())
    if writer is None:
        raise ValueError(
            f"path: got {path}, want a name ending in .mp4, .webm or .gif, or none for a folder"
        )
    if path.suffix.lower() == ".gif" and Fraction(clip.fps) > _MAX_GIF_FPS:
        raise ValueError(
            f"clip.fps: got {float(clip.fps):g}, want at most {_MAX_GIF_FPS} for a GIF"
        )
    with atomic_path(path, overwrite=overwrite) as temporary:
        writer(temporary, clip)
    return path


def write_mask(
    path: PathLike, mask: Tensor, *, fps: Fraction | float = DEFAULT_FPS, overwrite: bool = False
) -> Path:
    """Write a bool mask [F, H, W] as a black-and-white clip; formats and errors as in `write_clip`.

    Raises:
        TypeError: `mask` is not bool.
        ValueError: `mask` is not [F, H, W].
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: got {mask.dtype}, want torch.bool")
    if mask.ndim != 3:
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, want [F, H, W]")
    frames = (mask.to(torch.uint8) * 255)[..., None].expand(*mask.shape, 3).contiguous()
    return write_clip(path, Clip(frames, fps), overwrite=overwrite)


def write_image(path: PathLike, image: Tensor, *, overwrite: bool = False) -> Path:
    """Write a uint8 image [H, W, 3], or [H, W, 4] with transparency; the suffix is the format.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
        TypeError: `image` is not uint8.
        ValueError: its shape, or the suffix, is not one of those above.
    """
    path = Path(path)
    if image.dtype != torch.uint8:
        raise TypeError(f"image: got {image.dtype}, want torch.uint8")
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        raise ValueError(f"image: got shape {tuple(image.shape)}, want [H, W, 3] or [H, W, 4]")
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"path: got {path}, want a name ending in {_listed(IMAGE_SUFFIXES)}")
    with atomic_path(path, overwrite=overwrite) as temporary:
        Image.fromarray(image.cpu().numpy()).save(temporary)
    return path


def check_target(path: PathLike, *, overwrite: bool = False) -> Path:
    """Return `path` if it may be written, so that a long computation does not end in a refusal.

    Raises:
        FileExistsError: it exists and `overwrite` is False, or it is a folder that holds more than
            images.
        NotADirectoryError: one of its parents is a file.
    """
    path = Path(path)
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{path}: {parent} is a file, want a folder")
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise FileExistsError(f"{path} exists already; overwriting it has to be asked for")
    if path.is_dir():
        other = next((p for p in path.iterdir() if p.suffix.lower() not in IMAGE_SUFFIXES), None)
        if other is not None:
            raise FileExistsError(
                f"{path} is a folder that holds {other.name}, which is not an image: not replaced"
            )
    return path


@contextmanager
def atomic_path(path: PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary name beside `path`, to be written in the block.

    What lies there becomes `path` when the block ends well. If the block raises (Ctrl-C included)
    it is removed and `path` stays as it was.

    Raises:
        FileExistsError: the target exists and `overwrite` is False; see `check_target`.
    """
    path = check_target(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        _install(temporary, check_target(path, overwrite=overwrite))
    finally:
        _remove(temporary)


# ----------------------------------------------------------------------------------------- resizing


def resize_clip(clip: Clip, size: tuple[int, int], *, mode: ResizeMode = "crop") -> Clip:
    """Resize a clip to multiples of 16, as the model's token grid needs.

    Args:
        clip: the clip.
        size: (height, width) in pixels.
        mode: "crop" keeps the aspect and cuts what is too much off both ends alike; "exact"
            stretches.

    Raises:
        ValueError: a side is not a positive multiple of 16, or `mode` is unknown.
    """
    _check_size(size, multiple=16)
    _check_mode(mode)
    if (clip.height, clip.width) == tuple(size):
        return clip
    scaled = _scaled_size((clip.height, clip.width), size, mode)
    frames = torch.stack([_resample(frame, scaled) for frame in clip.frames])
    return Clip(_center_crop(frames, size).contiguous(), clip.fps)


def resize_mask(mask: Tensor, size: tuple[int, int], *, mode: ResizeMode = "crop") -> Tensor:
    """Resize a bool mask [F, H, W] as `resize_clip` resizes its clip, by nearest neighbour.

    Raises:
        TypeError: `mask` is not bool.
        ValueError: `mask` is not [F, H, W], a side is not a positive multiple of 16, or `mode` is
            unknown.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: got {mask.dtype}, want torch.bool")
    if mask.ndim != 3:
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, want [F, H, W]")
    _check_size(size, multiple=16)
    _check_mode(mode)
    scaled = _scaled_size((mask.shape[1], mask.shape[2]), size, mode)
    return _center_crop(_nearest(mask, scaled)[..., None], size)[..., 0].contiguous()


def fit_image(image: Tensor, size: tuple[int, int], *, background: int = BACKGROUND) -> Tensor:
    """Scale an image, aspect kept, until it just fits into `size`; centre it on grey.

    This is how the model takes a picture of the object.

    Args:
        image: uint8 [H, W, 3].
        size: (height, width) in pixels.
        background: grey value around the image, 0 to 255.

    Raises:
        TypeError: `image` is not uint8.
        ValueError: a shape or size is wrong.
    """
    if image.dtype != torch.uint8:
        raise TypeError(f"image: got {image.dtype}, want torch.uint8")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image: got shape {tuple(image.shape)}, want [H, W, 3]")
    _check_size(size, multiple=1)
    height, width = size
    scale = min(height / image.shape[0], width / image.shape[1])
    inner = (
        min(height, max(1, round(image.shape[0] * scale))),
        min(width, max(1, round(image.shape[1] * scale))),
    )
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    out = torch.full((height, width, 3), background, dtype=torch.uint8)
    out[top : top + inner[0], left : left + inner[1]] = _resample(image, inner)
    return out


# ------------------------------------------------------------------------- reading, the inner parts


def _existing(path: PathLike, what: str) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{what}: there is no file or folder {path}")
    return path


def _is_video(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES


def _pyav() -> ModuleType:
    """PyAV, imported where a video is: models and still images do without it."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise ImportError("reading and writing videos needs PyAV: pip install av") from error
    return av


def _open_video(path: Path) -> Any:
    av = _pyav()
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: not a video that can be read ({error})") from error
    if not container.streams.video:
        container.close()
        raise ValueError(f"{path}: holds no video stream")
    return container


def _decode(path: Path, max_frames: int | None) -> Iterator[np.ndarray]:
    """Yield a video's frames as uint8 [H, W, 3], at least one."""
    count = 0
    with _open_video(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        try:
            for frame in container.decode(video=0):
                if count == max_frames:
                    return
                turns = round(frame.rotation / 90)
                yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
                count += 1
        except _pyav().FFmpegError as error:
            raise ValueError(f"{path}: broken after {count} frames ({error})") from error
    if count == 0:
        raise ValueError(f"{path}: holds no frame")


def _read_video(path: Path, max_frames: int | None) -> tuple[Fraction, np.ndarray]:
    with _open_video(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or DEFAULT_FPS
        if container.format.name == "gif" and stream.duration:
            # A GIF's delays are whole hundredths of a second: only their sum tells the rate.
            rate = count_frames(path) / (stream.duration * stream.time_base)
    frames = list(_decode(path, max_frames))
    _same_sizes(path, [frame.shape for frame in frames])
    return Fraction(rate), np.stack(frames)


def _read_images(path: Path, max_frames: int | None) -> np.ndarray:
    paths = _image_paths(path)[:max_frames]
    frames = [_load_rgb(p, background=BACKGROUND) for p in paths]
    for other, frame in zip(paths, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise ValueError(
                f"{other}: {_size_words(frame)}, want {_size_words(frames[0])} like {paths[0].name}"
            )
    return np.stack(frames)


def _image_paths(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    paths = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
    if not paths:
        raise ValueError(f"{path}: a folder without images ({_listed(IMAGE_SUFFIXES)})")
    return sorted(paths, key=lambda p: _natural(p.name))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _load_rgb(path: Path, *, background: int) -> np.ndarray:
    """Read one image as uint8 [H, W, 3], upright, transparency composited over a grey."""
    try:
        with Image.open(path) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not an image that can be read ({error})") from error
    if image.mode.startswith("I"):
        # Pillow clips 16-bit values instead of scaling them.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, (background, background, background, 255))
        image = Image.alpha_composite(below, image)
    return np.array(image.convert("RGB"))


def _bright(frame: np.ndarray) -> np.ndarray:
    return frame.astype(np.uint16).sum(axis=2) > 3 * MASK_THRESHOLD


def _match(mask: Tensor, like: Clip, path: Path) -> Tensor:
    """Bring a mask to a clip's length and frame size."""
    if mask.shape[0] not in (1, like.num_frames):
        raise ValueError(
            f"mask {path}: has {mask.shape[0]} frames, but the clip has {like.num_frames}; "
            f"want {like.num_frames}, or a single frame for all"
        )
    mask = _nearest(mask, (like.height, like.width))
    return mask.expand(like.num_frames, -1, -1).contiguous()


def _same_sizes(path: Path, shapes: list[tuple[int, ...]]) -> None:
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"{path}: frame {i} is {shape[1]}x{shape[0]}, want {shapes[0][1]}x{shapes[0][0]} "
                "like the first"
            )


def _size_words(frame: np.ndarray) -> str:
    return f"{frame.shape[1]}x{frame.shape[0]} pixels"


def _listed(suffixes: frozenset[str]) -> str:
    return ", ".join(sorted(suffixes))


# ------------------------------------------------------------------------- writing, the inner parts


def _rate(fps: Fraction | float) -> Fraction:
    finite = math.isfinite(fps)
    rate = Fraction(fps).limit_denominator(1001) if finite else Fraction(0)
    if rate <= 0:
        raise ValueError(f"fps: got {fps}, want a positive number of frames a second")
    return rate


def _write_video(path: Path, clip: Clip) -> None:
    webm = path.suffix.lower() == ".webm"
    codec, options = (
        ("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1"})
        if webm
        else ("libx264", {"crf": "15", "preset": "medium"})
    )
    container = _pyav().open(str(path), mode="w", format="webm" if webm else "mp4")
    with container:
        stream: Any = container.add_stream(codec, rate=Fraction(clip.fps), options=options)
        stream.width, stream.height = clip.width, clip.height
        even = clip.width % 2 == 0 and clip.height % 2 == 0
        stream.pix_fmt = "yuv420p" if even else "yuv444p"
        # Untagged colours are guessed by players, differently by size; tagged ones are not.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        for frame in _video_frames(clip):
            frame = frame.reformat(format=stream.pix_fmt, dst_colorspace=_BT709)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_gif(path: Path, clip: Clip) -> None:
    """Write a GIF with one palette made from all frames, so that still areas do not flicker."""
    av = _pyav()
    graph: Any = av.filter.Graph()
    time_base = 1 / Fraction(clip.fps)
    source = graph.add_buffer(
        width=clip.width, height=clip.height, format="rgb24", time_base=time_base
    )
    split, palette = graph.add("split"), graph.add("palettegen")
    use, sink = graph.add("paletteuse"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    with av.open(str(path), mode="w", format="gif") as container:
        stream: Any = container.add_stream("gif", rate=Fraction(clip.fps))
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "pal8"
        for frame in _video_frames(clip):
            source.push(frame)
        source.push(None)
        for _ in range(clip.num_frames):
            container.mux(stream.encode(graph.pull()))
        container.mux(stream.encode(None))


def _video_frames(clip: Clip) -> Iterator[Any]:
    new_frame = _pyav().VideoFrame.from_ndarray
    for i, pixels in enumerate(clip.frames):
        frame = new_frame(np.ascontiguousarray(pixels.cpu().numpy()), format="rgb24")
        frame.pts, frame.time_base = i, 1 / Fraction(clip.fps)
        yield frame


def _write_folder(path: Path, clip: Clip) -> None:
    path.mkdir()
    digits = max(5, len(str(clip.num_frames - 1)))
    for i, frame in enumerate(clip.frames):
        Image.fromarray(frame.cpu().numpy()).save(path / f"{i:0{digits}}.png")


def _beside(path: Path) -> Path:
    """Make up a hidden name in the same folder; writers choose the format by its suffix."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")


def _install(temporary: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(temporary, path)
        return
    # A folder cannot be replaced in one step: put the old one aside first.
    aside = _beside(path)
    os.replace(path, aside)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(aside, path)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ------------------------------------------------------------------------ resizing, the inner parts


def _check_size(size: tuple[int, int], *, multiple: int) -> None:
    if len(size) != 2 or any(side < 1 or side % multiple for side in size):
        want = "positive" if multiple == 1 else f"positive multiples of {multiple}"
        raise ValueError(f"size: got {tuple(size)}, want (height, width), both {want}")


def _check_mode(mode: str) -> None:
    if mode not in ("crop", "exact"):
        raise ValueError(f'mode: got {mode!r}, want "crop" or "exact"')


def _scaled_size(old: tuple[int, int], new: tuple[int, int], mode: ResizeMode) -> tuple[int, int]:
    """Size before the crop: at least `new` on both sides."""
    if mode == "exact":
        return new
    scale = max(new[0] / old[0], new[1] / old[1])
    return max(new[0], round(old[0] * scale)), max(new[1], round(old[1] * scale))


def _center_crop(frames: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = (frames.shape[1] - size[0]) // 2, (frames.shape[2] - size[1]) // 2
    return frames[:, top : top + size[0], left : left + size[1]]


def _resample(image: Tensor, size: tuple[int, int]) -> Tensor:
    resized = Image.fromarray(image.cpu().numpy()).resize(
        (size[1], size[0]), Image.Resampling.LANCZOS
    )
    return torch.from_numpy(np.array(resized))


def _nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(mask.shape[1:]) == tuple(size):
        return mask
    resized = F.interpolate(mask[:, None].to(torch.uint8), size=size, mode="nearest-exact")
    return resized[:, 0].bool()
