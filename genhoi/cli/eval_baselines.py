"""The clips that `genhoi eval` measures beside a result, to read its numbers by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from genhoi.evaluation.case_files import CaseFiles
from genhoi.media import digest

__all__ = ["UNEDITED", "find_baselines"]

UNEDITED = "unedited source"


def find_baselines(
    source: Path | None, named: Sequence[str], cases: Sequence[CaseFiles]
) -> dict[str, Path]:
    """Name the clips that stand in the result's place for comparison.

    Args:
        source: of `--source`; None: the one that edit.json beside the result names, unless it is
            the truth.
        named: of `--baseline`, each NAME=CLIP.
        cases: that are evaluated. Baselines belong to one, so of several there are none.

    Raises:
        ValueError: one is not NAME=CLIP, a name comes twice, or there are several cases.
    """
    if len(cases) > 1:
        for flag, given in (("source", source), ("baseline", named)):
            if given:
                raise ValueError(f"--{flag}: got it beside --cases, want it for one case")
        return {}
    found = source or _source_of(cases[0])
    baselines = {} if found is None else {UNEDITED: found}
    for text in named:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--baseline: got {text}, want NAME=CLIP")
        if name in (*baselines, cases[0].name):
            raise ValueError(f"--baseline: got the name {name} twice, want one for each")
        baselines[name] = Path(path)
    return baselines


def _source_of(files: CaseFiles) -> Path | None:
    """Find the clip that a result was made from, if its edit.json is there and the clip still is.

    What is not as `genhoi edit` writes it counts as not there: the result may be anyone's.
    """
    try:
        record = json.loads((files.result.parent / "edit.json").read_text(encoding="utf-8"))
        video = record["inputs"]["video"]
        path, known = Path(video["path"]), video["sha256"]
        if not path.exists() or digest(path) != known or digest(files.truth) == known:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path
