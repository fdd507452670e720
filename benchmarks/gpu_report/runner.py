"""Runs the stages: side by side in a group, each with its own time limit, log and faults."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from benchmarks.gpu_report.folder import ENVIRONMENT, FILES, LOG, REPORT, read_json, write_json
from benchmarks.gpu_report.plan import Group, Stage
from benchmarks.gpu_report.stage import SECONDS

__all__ = ["Ended", "Run"]

_WORK = Path("build/gpu-report")
_OF_A_DRY_RUN = 3  # times as long for a stage: on an emulated GPU, beside other work
_RESERVE = 8.0
"""Seconds at the end for the table."""
_LEAST = 5.0
"""Seconds below which a stage is not begun."""
_GRACE = 6.0
"""Seconds that a stage has to end after it was asked to."""
_LARGEST_LOG = 15 << 20


@dataclass(frozen=True)
class Ended:
    """How a stage ended: "right", "failed", "stopped" at its limit, or "left out"."""

    name: str
    outcome: str
    seconds: float


@dataclass
class _Running:
    stage: Stage
    process: subprocess.Popen[bytes]
    log: Path
    begun: float
    limit: float

    @property
    def late(self) -> bool:
        return time.monotonic() - self.begun > self.limit


class Run:
    """A report that is being made.

    Args:
        out: its folder.
        seconds: for everything.
        wheels: folder of wheels that the stages can import from.
        tiny: sizes of a dry run.
    """

    def __init__(self, out: Path, *, seconds: float, wheels: Path | None, tiny: bool) -> None:
        self.out, self.tiny = out.resolve(), tiny
        self._end = time.monotonic() + seconds
        self._ended: list[Ended] = []
        self._work = _WORK.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (self.out / name).unlink(missing_ok=True)
        (self._work / "logs").mkdir(parents=True, exist_ok=True)
        (self._work / ENVIRONMENT).unlink(missing_ok=True)
        self._paths = [str(Path.cwd()), *unpack(wheels, self._work / "site")]

    @property
    def was_right(self) -> bool:
        """Say whether no stage failed; to be stopped or left out for lack of time is none."""
        return all(stage.outcome != "failed" for stage in self._ended)

    def all(self, groups: Sequence[Group]) -> None:
        """Run every group, one after another, as long as there is time."""
        for group in groups:
            self._group(group)

    def _left(self) -> float:
        return self._end - time.monotonic() - _RESERVE

    def _group(self, group: Group) -> None:
        running = []
        for stage in group:
            seconds = stage.seconds * (_OF_A_DRY_RUN if self.tiny else 1)
            limit = min(seconds, self._left())
            if limit < _LEAST:
                self._note(Ended(stage.name, "left out", 0.0))
            else:
                running.append(self._start(stage, limit))
        try:
            while running:
                time.sleep(0.05)
                for one in [r for r in running if r.process.poll() is not None or r.late]:
                    running.remove(one)
                    self._finish(one)
        finally:  # interrupted
            for one in running:
                self._finish(one)

    def _start(self, stage: Stage, limit: float) -> _Running:
        log = self._work / "logs" / f"{stage.name}.txt"
        command = [
            sys.executable,
            "-m",
            f"{__package__}.{stage.module}",
            *stage.arguments,
            "--out",
            str(self.out),
            "--work",
            str(self._work),
        ]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command, *(["--tiny"] if self.tiny else [])],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment(stage, limit),
                start_new_session=True,
            )
        return _Running(stage, process, log, time.monotonic(), limit)

    def _finish(self, one: _Running) -> None:
        was_late = one.process.poll() is None
        if was_late:
            stop(one.process)
        outcome = "right" if one.process.returncode == 0 else "failed"
        seconds = time.monotonic() - one.begun
        self._keep_log(one)
        self._note(Ended(one.stage.name, "stopped" if was_late else outcome, round(seconds, 1)))

    def _note(self, ended: Ended) -> None:
        self._ended.append(ended)
        left = max(0.0, self._left() + _RESERVE)
        print(
            f"{ended.name}: {ended.outcome}, {ended.seconds:.0f} s; {left:.0f} s left", flush=True
        )
        write_json(
            self.out / REPORT,
            {
                "environment": read_json(self._work / ENVIRONMENT),
                "stages": [asdict(stage) for stage in self._ended],
                "tiny": self.tiny,
            },
        )

    def _keep_log(self, one: _Running) -> None:
        with (self.out / LOG).open("ab") as log:
            log.write(f"=== {one.stage.name} (at most {one.limit:.0f} s)\n".encode())
            room = _LARGEST_LOG - log.tell()
            with one.log.open("rb") as file:
                copy_end(file, log, room)

    def _environment(self, stage: Stage, limit: float) -> dict[str, str]:
        """Return a stage's environment: caches and temporary files lie in the work folder."""
        changes = dict(stage.environment)
        caches = self._work / "cache"
        triton = caches / f"triton{changes.pop('TRITON_CACHE', '')}"
        folders = {
            "GENHOI_CACHE": caches / "genhoi",
            "TRITON_CACHE_DIR": triton,
            "TORCHINDUCTOR_CACHE_DIR": caches / "inductor",
            "CUDA_CACHE_PATH": caches / "cuda",
            "XDG_CACHE_HOME": caches,
            "MPLCONFIGDIR": caches / "matplotlib",
            "TMPDIR": self._work / "tmp",
        }
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        paths = [*self._paths, os.environ.get("PYTHONPATH", "")]
        return (
            os.environ
            | {name: str(folder) for name, folder in folders.items()}
            | {
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "PYTHONUNBUFFERED": "1",
                "MPLBACKEND": "Agg",
                "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # the tests ask torch for determinism
                SECONDS: f"{limit:.0f}",
            }
            | changes
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a stage and all that it started to end; end them if they don't."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        try:
            process.wait(_GRACE)
            break
        except subprocess.TimeoutExpired:
            continue
    with contextlib.suppress(ProcessLookupError):  # what it started may outlive it
        os.killpg(process.pid, signal.SIGKILL)


def copy_end(source: IO[bytes], target: IO[bytes], room: int) -> None:
    """Copy the end of a file, or all of it if that fits."""
    size = source.seek(0, os.SEEK_END)
    source.seek(max(0, size - max(room, 0)))
    target.write(source.read())


def unpack(wheels: Path | None, site: Path) -> list[str]:
    """Unpack wheels side by side into a folder. Returns what to add to Python's path."""
    if wheels is None:
        return []
    paths = sorted(wheels.glob("*.whl"))
    if not paths:
        raise ValueError(f"--wheels: got {wheels}, which holds no wheel")
    for wheel in paths:
        with zipfile.ZipFile(wheel) as file:
            file.extractall(site)
    return [str(site)]
