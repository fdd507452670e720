"""The command `genhoi eval`."""

from __future__ import annotations

from typing import Any

import cloup

from genhoi.cli.common import PATH
from genhoi.cli.output import Output, with_output

__all__ = ["eval_command"]


@cloup.command("eval")
@cloup.option_group(
    "One case",
    cloup.option("--result", type=PATH, help="Edited clip: video, GIF, or folder of images."),
    cloup.option(
        "--truth", type=PATH, help="What it should be: the source's own file, not a recoded copy."
    ),
    cloup.option(
        "--mask", type=PATH, help="White where it was generated: video, folder or single image."
    ),
    cloup.option("--object", type=PATH, help="Picture of the object, to compare with."),
    cloup.option(
        "--object-mask",
        type=PATH,
        help="White where the truth shows the object.  [default: the mask stands for it]",
    ),
)
@cloup.option_group(
    "Baselines, to read the numbers by",
    cloup.option(
        "--source",
        type=PATH,
        help="The unedited clip.  [default: the one that edit.json beside the result names, if it "
        "is another one than the truth]",
    ),
    cloup.option(
        "--baseline",
        "baselines",
        multiple=True,
        metavar="NAME=CLIP",
        help="Another clip in the result's place, such as an edit without the object's picture; "
        "may be repeated.",
    ),
)
@cloup.option_group(
    "Several cases",
    cloup.option(
        "--cases",
        type=PATH,
        help="CSV instead of these: columns result, truth, mask, and as wanted object, "
        "object_mask, name; paths relative to it.",
    ),
)
@cloup.option_group(
    "Settings",
    cloup.option(
        "--frames",
        help="Compare only so many from the start, or as many as the result has: a number, or "
        "result.  [default: all, and both must have the same number]",
    ),
    cloup.option(
        "--fit",
        is_flag=True,
        help="Scale and crop truth and masks to the result's size, if it was made at another.",
    ),
)
@cloup.option_group(
    "Metrics with trained weights",
    cloup.option("--lpips-weights", type=PATH, help="State dict of a lpips.LPIPS: measures LPIPS."),
    cloup.option(
        "--clip-model", type=PATH, help="Folder of a transformers CLIP model: measures it."
    ),
    cloup.option(
        "--fvd-weights", type=PATH, help="TorchScript I3D: measures FVD, from 2 cases on."
    ),
    cloup.option("--device", default="cpu", show_default=True, help="Where these three compute."),
)
@cloup.option_group(
    "Results",
    cloup.option(
        "--out", default="genhoi-eval", show_default=True, type=PATH, help="Folder for the results."
    ),
    cloup.option("--force", is_flag=True, help="Overwrite existing results."),
)
@with_output
def eval_command(output: Output, **options: Any) -> None:
    """Measure edited clips against the truth.

    SSIM and edges of every frame of the whole picture, of the mask, of the object, and of the
    background; PSNR where nothing was to be painted; colours of the object, and how they drift.
    Writes eval.csv (every frame), eval.json (summaries, how to
    repeat it) and eval.png. A result that is an mp4 is measured with what its own coding cost.
    Nothing is downloaded: what needs trained weights is measured where they are given.
    """
    from genhoi.cli.eval_run import evaluate_files

    evaluate_files(output, options)
