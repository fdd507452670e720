"""The command `genhoi mask`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from genhoi.cli.common import PATH, free_targets, plain_errors, progress_bar, time_text
from genhoi.media import Clip, check_target, read_clip, write_clip, write_image, write_mask

if TYPE_CHECKING:
    from genhoi.masking import Cue, Engine, Track

__all__ = ["mask"]

_FORMATS = (".mp4", ".webm", ".gif", "")
_LINES = 10  # of progress, where no bar is seen


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--video", required=True, type=PATH, help="Clip: video, GIF, or folder of images.")
@click.option(
    "--out",
    default="mask.mp4",
    show_default=True,
    type=PATH,
    help="The mask: .mp4, .webm, .gif, or no suffix for a folder of PNG files.",
)
@click.option(
    "--box",
    "boxes",
    multiple=True,
    metavar="X,Y,W,H[@FRAME]",
    help="Rectangle around the thing, tight, in pixels from the upper left corner, on frame 0 or "
    "that one. Several on one frame: the thing's parts. On several frames: between them nothing "
    "outside is masked.",
)
@click.option(
    "--point", "points", multiple=True, metavar="X,Y[@FRAME]", help="A pixel of the thing."
)
@click.option(
    "--not-point",
    "not_points",
    multiple=True,
    metavar="X,Y[@FRAME]",
    help="A pixel that does not belong to it (SAM's negative point).",
)
@click.option("--text", help='What to look for, such as "hand, mug"; needs --model with SAM 3.')
@click.option(
    "--from",
    "drawn",
    multiple=True,
    metavar="PNG[@FRAME]",
    help="A finished mask of one frame, white the thing, to be carried through the clip.",
)
@click.option("--grow", default=0, show_default=True, type=click.IntRange(0), help="Pixels wider.")
@click.option(
    "--kind",
    default="tight",
    show_default=True,
    type=click.Choice(["tight", "box"]),
    help="The thing's outline, or the filled rectangle around it, smooth over frames.",
)
@click.option("--frames", type=click.IntRange(1), help="So many from the start.  [default: all]")
@click.option(
    "--model",
    help="SAM 2 or SAM 3 for video in transformers' format: folder, or name on the hub if it was "
    "fetched before.  [default: the built-in engine, without weights]",
)
@click.option("--device", default="cpu", show_default=True, help="Where the model computes.")
@click.option("--force", is_flag=True, help="Overwrite existing results.")
def mask(**options: Any) -> None:
    """Mask a thing in every frame of a clip, from a box or points on one.

    Writes the mask and, beside it, NAME-overlay.mp4 (the clip with the mask drawn in),
    NAME-preview.png (some frames of it) and NAME-areas.csv (every frame's area, and how far to
    trust it). For `genhoi edit` the mask has to hold hand and object.
    """
    with plain_errors():
        from genhoi.cli.cue_flags import parse_cues, read_drawn
        from genhoi.masking.shape import boxed, grown

        targets = _targets(options["out"], force=options["force"])
        cues = parse_cues(
            options["boxes"], options["points"], options["not_points"], options["text"]
        )
        if not cues and not options["drawn"]:
            raise ValueError("cues: got none, want --box, --point, --from, or --text with --model")
        engine = _engine(options["model"], options["device"])
        engine.check(cues)
        clip = read_clip(options["video"], max_frames=options["frames"])
        cues += read_drawn(options["drawn"], clip)
        track = _track(clip, cues, engine)
        made = grown(track.mask, options["grow"])
        if options["kind"] == "box":
            made = boxed(made)
        with Console().status("Writing"):
            _write(targets, clip, made, track, cues, force=options["force"])
    _report(targets, track)


def _targets(out: Path, *, force: bool) -> tuple[Path, ...]:
    """Say where mask, overlay, picture and table go.

    Raises:
        FileExistsError: one is there, and `force` is False.
        ValueError: nothing can be written under this name.
    """
    if out.suffix.lower() not in _FORMATS:
        raise ValueError(
            f"--out: got {out}, want a name ending in .mp4, .webm or .gif, or none for a folder"
        )
    if out.suffix:
        free_targets(out.parent, out.name, force=force)
    elif out.exists() and not force:
        raise FileExistsError(f"--out: {out} exists already; --force overwrites it")
    else:
        check_target(out, overwrite=force)
    names = (f"{out.stem}-{what}" for what in ("overlay.mp4", "preview.png", "areas.csv"))
    return out, *free_targets(out.parent, *names, force=force)


def _engine(model: str | None, device: str) -> Engine:
    if model is None:
        if device != "cpu":
            raise ValueError(f"--device: got {device} without --model, want cpu: there is no other")
        from genhoi.masking.engine import GraphCutEngine

        return GraphCutEngine()
    from genhoi.masking.sam import SAMEngine

    return SAMEngine(model, device=device)


def _track(clip: Clip, cues: list[Cue], engine: Engine) -> Track:
    from genhoi.masking import track_mask

    with _shown(Console()) as progress:
        return track_mask(clip, cues, engine=engine, progress=progress)


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """Show progress: a bar on a terminal, else some lines."""
    start, said = time.monotonic(), 0
    with progress_bar(console, "left", disable=not console.is_terminal) as bar:
        task = bar.add_task("tracking", total=None, left="")

        def show(done: int, total: int, what: str) -> None:
            nonlocal said
            gone = time.monotonic() - start
            left = f"{time_text(gone / done * (total - done))} left"
            bar.update(task, completed=done, total=total, description=what, left=left)
            if not console.is_terminal and done * _LINES // total > said:
                said = done * _LINES // total
                click.echo(f"{done} of {total} steps, {time_text(gone)}, {left}")

        yield show


def _write(
    targets: tuple[Path, ...], clip: Clip, made: Any, track: Track, cues: list[Cue], *, force: bool
) -> None:
    from genhoi.masking.areas import write_areas
    from genhoi.masking.overlay import overlay, preview
    from genhoi.masking.protocol import Track

    write_mask(targets[0], made, fps=clip.fps, overwrite=force)
    write_clip(targets[1], overlay(clip, made), overwrite=force)
    shown = Track(made, track.confidence, track.lost)
    write_image(targets[2], preview(clip, shown, cues), overwrite=force)
    write_areas(targets[3], made, track, cues, overwrite=force)


def _report(targets: tuple[Path, ...], track: Track) -> None:
    from genhoi.masking.areas import frame_ranges

    if track.lost.any():
        frames, first = frame_ranges(track.lost), int(track.lost.nonzero()[0])
        click.echo(
            f"Lost in {int(track.lost.sum())} of {len(track.lost)} frames, where the mask is "
            f"empty: {frames}. If the thing is in view there, give a box on one of them, such as "
            f"--box x,y,w,h@{first}.",
            err=True,
        )
    # Not wrapped to the terminal's width, so that paths can be copied.
    click.echo(
        f"Mask: {targets[0]}\nOver the clip: {targets[1]}\nSome frames: {targets[2]}\n"
        f"Areas: {targets[3]}"
    )
