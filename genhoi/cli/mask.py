"""The command `genhoi mask`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from genhoi.cli.common import PATH, free_targets
from genhoi.cli.device import chosen_device
from genhoi.cli.output import Output, with_output

if TYPE_CHECKING:
    from genhoi.masking import Cue, Engine, Track
    from genhoi.media import Clip

__all__ = ["mask"]

_FORMATS = (".mp4", ".webm", ".gif", "")


@cloup.command()
@cloup.option_group(
    "The clip, and where the thing is in it",
    cloup.option(
        "--video", required=True, type=PATH, help="The clip: a video, a GIF, or a folder of images."
    ),
    cloup.option(
        "--box",
        "boxes",
        multiple=True,
        metavar="X,Y,W,H[@FRAME]",
        help="A rectangle around the thing, tight, in pixels from the upper left corner, on frame "
        "0 or that one. Several on one frame: the thing's parts. On several frames: between them "
        "nothing outside is masked.",
    ),
    cloup.option(
        "--point", "points", multiple=True, metavar="X,Y[@FRAME]", help="A pixel of the thing."
    ),
    cloup.option(
        "--not-point",
        "not_points",
        multiple=True,
        metavar="X,Y[@FRAME]",
        help="A pixel that does not belong to it (SAM's negative point).",
    ),
    cloup.option(
        "--text", help='What to look for, such as "hand, mug". It needs --model with SAM 3.'
    ),
    cloup.option(
        "--from",
        "drawn",
        multiple=True,
        metavar="PNG[@FRAME]",
        help="A finished mask of one frame, white the thing, to be carried through the clip.",
    ),
    cloup.option(
        "--rulers",
        metavar="FRAME",
        type=click.IntRange(0),
        help="Only draw this frame under a grid with its coordinates, NAME-rulers.png, to read a "
        "box or a point from.",
    ),
    cloup.option(
        "--frames",
        type=click.IntRange(1),
        help="Mask only so many frames from the start.  [default: all]",
    ),
)
@cloup.option_group(
    "The mask's shape",
    cloup.option(
        "--grow",
        default=0,
        show_default=True,
        type=click.IntRange(0),
        help="Make the mask so many pixels wider.",
    ),
    cloup.option(
        "--kind",
        default="tight",
        show_default=True,
        type=click.Choice(["tight", "box"]),
        help="The thing's outline, or the filled rectangle around it, smooth over frames.",
    ),
)
@cloup.option_group(
    "The model",
    cloup.option(
        "--model",
        help="SAM 2 or SAM 3 for video in transformers' format: a folder, or a name on the hub if "
        "it was fetched before.  [default: the built-in engine, without weights]",
    ),
    cloup.option("--device", help="Where the model computes.  [default: cuda, else cpu]"),
)
@cloup.option_group(
    "Results",
    cloup.option(
        "--out",
        default="mask.mp4",
        show_default=True,
        type=PATH,
        help="The mask: .mp4, .webm, .gif, or no suffix for a folder of PNG files.",
    ),
    cloup.option("--force", is_flag=True, help="Overwrite existing results."),
)
@with_output
def mask(output: Output, **options: Any) -> None:
    """Mask a thing in every frame, from a box or points on one.

    Writes the mask and, beside it, NAME-overlay.mp4 (the clip with the mask drawn in),
    NAME-preview.png (some frames of it) and NAME-areas.csv (every frame's area, and how far to
    trust it). For `genhoi edit` the mask has to hold hand and object.
    """
    from genhoi.cli.cue_flags import parse_cues, read_drawn
    from genhoi.masking.shape import boxed, grown
    from genhoi.media import read_clip

    if options["rulers"] is not None:
        _draw_rulers(output, options)
        return
    targets = _targets(options["out"], force=options["force"])
    cues = parse_cues(options["boxes"], options["points"], options["not_points"], options["text"])
    if not cues and not options["drawn"]:
        raise ValueError(
            "cues: got none, want --box, --point, --from, or --text with --model; --rulers 0 draws "
            "frame 0 with its coordinates, to read a box from"
        )
    engine = _engine(options["model"], options["device"])
    engine.check(cues)
    with output.status("Reading the clip"):
        clip = read_clip(options["video"], max_frames=options["frames"])
    cues += read_drawn(options["drawn"], clip)
    track = _track(output, clip, cues, engine)
    made = grown(track.mask, options["grow"])
    if options["kind"] == "box":
        made = boxed(made)
    with output.status("Writing the results"):
        _write(targets, clip, made, track, cues, force=options["force"])
    _report(output, targets, track, cues)


def _draw_rulers(output: Output, options: dict[str, Any]) -> None:
    from genhoi.masking.rulers import draw_rulers
    from genhoi.media import read_clip

    frame, out = options["rulers"], options["out"]
    (target,) = free_targets(out.parent, f"{out.stem}-rulers.png", force=options["force"])
    clip = read_clip(options["video"], max_frames=frame + 1)
    if frame >= clip.num_frames:
        raise ValueError(f"--rulers: got {frame}, want 0 to {clip.num_frames - 1}")
    title = f"{options['video'].name}, frame {frame}: x to the right, y down, in pixels"
    draw_rulers(target, clip.frames[frame], title=title, overwrite=options["force"])
    output.say(
        f"Coordinates: {target}\n"
        f"A tight box around the thing is --box x,y,w,h, from its upper left corner"
        + (f", and @{frame} behind it." if frame else ".")
    )
    output.finish({"files": {"rulers": target}})


def _targets(out: Path, *, force: bool) -> tuple[Path, ...]:
    """Say where mask, overlay, picture and table go.

    Raises:
        FileExistsError: one is there, and `force` is False.
        ValueError: nothing can be written under this name.
    """
    from genhoi.media import check_target

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


def _engine(model: str | None, device: str | None) -> Engine:
    if model is None:
        if device not in (None, "cpu"):
            raise ValueError(f"--device: got {device} without --model, want cpu: there is no other")
        from genhoi.masking.engine import GraphCutEngine

        return GraphCutEngine()
    place = str(chosen_device(device))
    from genhoi.masking.sam import SAMEngine

    return SAMEngine(model, device=place)


def _track(output: Output, clip: Clip, cues: list[Cue], engine: Engine) -> Track:
    from genhoi.masking import track_mask

    with output.progress() as bar:
        task = bar.add_task("tracking", total=None)

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        return track_mask(clip, cues, engine=engine, progress=show)


def _write(
    targets: tuple[Path, ...], clip: Clip, made: Any, track: Track, cues: list[Cue], *, force: bool
) -> None:
    from genhoi.masking.areas import write_areas
    from genhoi.masking.overlay import overlay, preview
    from genhoi.masking.protocol import Track
    from genhoi.media import write_clip, write_image, write_mask

    write_mask(targets[0], made, fps=clip.fps, overwrite=force)
    write_clip(targets[1], overlay(clip, made), overwrite=force)
    shown = Track(made, track.confidence, track.lost)
    write_image(targets[2], preview(clip, shown, cues), overwrite=force)
    write_areas(targets[3], made, track, cues, overwrite=force)


def _report(output: Output, targets: tuple[Path, ...], track: Track, cues: list[Cue]) -> None:
    from genhoi.masking.areas import grown_frames
    from genhoi.media.frame_ranges import frame_ranges

    lost = track.lost.nonzero()[:, 0].tolist()
    if lost:
        output.warn(
            f"Warning: lost in {len(lost)} of {len(track.lost)} frames, where the mask is empty: "
            f"{frame_ranges(lost)}. If the thing is in view there, give a box on one of them, such "
            f"as --box x,y,w,h@{lost[0]}."
        )
    grown = grown_frames(track, cues)
    if grown:
        output.warn(
            f"Warning: the mask is twice as large as where you said what it is, or larger, in "
            f"frames {frame_ranges(grown)}. If the thing does not come that much nearer, the mask "
            f"has run out into what surrounds it: give a tighter box, or another one there, such "
            f"as --box x,y,w,h@{grown[0]}."
        )
    output.say(
        f"Mask: {targets[0]}\nOver the clip: {targets[1]}\nSome frames: {targets[2]}\n"
        f"Areas: {targets[3]}"
    )
    names = ("mask", "overlay", "preview", "areas")
    files = dict(zip(names, targets, strict=True))
    output.finish({"frames": len(track.lost), "lost": lost, "grown": grown, "files": files})
