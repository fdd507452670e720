"""What `genhoi eval` does: cases from its options, read and measured one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.progress import Progress

from genhoi.cli.common import free_targets, repeat_command
from genhoi.cli.device import chosen_device
from genhoi.cli.eval_baselines import find_baselines
from genhoi.cli.eval_screen import show_evaluation
from genhoi.cli.output import Output
from genhoi.evaluation import Case, Evaluation, evaluate
from genhoi.evaluation.case_files import (
    CaseFiles,
    check_baseline,
    check_case,
    read_baseline,
    read_case,
    read_table,
)
from genhoi.evaluation.figure import draw_evaluation
from genhoi.evaluation.learned_metrics import Models, load_models
from genhoi.evaluation.record import as_record, write_curves, write_record
from genhoi.extras import need

__all__ = ["evaluate_files"]

_SINGLE = ("result", "truth", "mask", "object", "object_mask")
_WEIGHTS = ("lpips_weights", "clip_model", "fvd_weights")


def evaluate_files(output: Output, options: dict[str, Any]) -> None:
    """Measure what the command's options name, show it, and write its files.

    Raises:
        ValueError, OSError: an option is wrong, or a file is; before anything long.
    """
    need("matplotlib", "drawing")
    device = chosen_device(options["device"])
    names = "eval.csv", "eval.png", "eval.json"
    targets = free_targets(options["out"], *names, force=options["force"])
    cases = _cases(options)
    frames = _frames(options["frames"])
    lengths = [check_case(files, frames=frames, fit=options["fit"]) for files in cases]
    baselines = find_baselines(options["source"], options["baselines"], cases)
    for name, path in baselines.items():
        check_baseline(name, path, cases[0], frames=lengths[0], fit=options["fit"])
    models = load_models(**{name: options[name] for name in _WEIGHTS}, device=device)
    with output.progress() as bar:
        evaluation = _evaluate(bar, cases, lengths, baselines, models, fit=options["fit"])
        record = as_record(
            evaluation,
            inputs={files.name: files.record() for files in cases},
            repeat=repeat_command(
                "eval", options, left_out=("force",), flags={"baselines": "baseline"}
            ),
        )
        write_curves(targets[0], evaluation, overwrite=options["force"])
        draw_evaluation(targets[1], evaluation, overwrite=options["force"])
        write_record(targets[2], record, overwrite=options["force"])
    show_evaluation(output, evaluation)
    output.say(f"Every frame: {targets[0]}\nPicture: {targets[1]}\nSummary: {targets[2]}")
    output.finish(record | {"files": [str(path) for path in targets]})


def _evaluate(
    bar: Progress,
    cases: Sequence[CaseFiles],
    lengths: Sequence[int],
    baselines: Mapping[str, Path],
    models: Models,
    *,
    fit: bool,
) -> Evaluation:
    """Read and measure one case after the other, so that only one is in memory."""
    task = bar.add_task("reading", total=sum(lengths) + len(baselines) * lengths[0])
    done = 0
    last: Case

    def read() -> Iterator[Case]:
        nonlocal done, last
        for files, length in zip(cases, lengths, strict=True):
            bar.update(task, description=f"reading {files.name}")
            last = read_case(files, frames=length, fit=fit)
            yield last
            done += length

    def read_others() -> Iterator[Case]:
        nonlocal done
        for name, path in baselines.items():
            bar.update(task, description=f"reading {name}")
            yield read_baseline(name, path, last)
            done += lengths[0]

    def show(name: str, now: int, total: int) -> None:
        bar.update(task, completed=done + now, description=f"{name}: frame {now} of {total}")

    evaluation = evaluate(read(), baselines=read_others(), models=models, progress=show)
    bar.update(task, description="writing")
    return evaluation


def _cases(options: dict[str, Any]) -> list[CaseFiles]:
    given = [name for name in _SINGLE if options[name] is not None]
    if options["cases"] is None:
        for name in ("result", "truth", "mask"):
            if name not in given:
                raise ValueError(
                    f"--{name}: got none, want --result, --truth and --mask, or --cases"
                )
        paths = {name: options[name] for name in _SINGLE}
        return [CaseFiles(options["result"].stem or "result", **paths)]
    if given:
        raise ValueError(
            f"--{given[0].replace('_', '-')}: got it beside --cases, want one or the other"
        )
    cases = read_table(options["cases"])
    names = [case.name for case in cases]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"--cases: {options['cases']} has the name {name} twice, want one for each (a "
                "case without a name is called by its result's path)"
            )
    return cases


def _frames(text: str | None) -> int | Literal["result"] | None:
    if text is None:
        return None
    if text == "result":
        return "result"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--frames: got {text}, want a number from 1 on, or result")
    return int(text)
