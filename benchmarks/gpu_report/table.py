"""The short table that is printed last, and a row of results in one line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bare_attention import backend_of
from benchmarks.gpu_report.folder import CHECKS, REPORT, RESULTS, read_json, read_rows

__all__ = ["is_apart", "is_ours", "label", "ms_words", "row_words", "summary", "times"]

_MOST_TESTS = 15


def row_words(row: dict[str, Any]) -> str:
    """Return a row of results as one line."""
    what = f"{row['suite'][:9]:9} {row['shape']:13} {row['direction']:8} {label(row):44.44}"
    if row["reason"]:
        return f"{what} {row['reason'][:90]}"
    return (
        f"{what} {_form(row['ms'], '8.3f')} ms {_rate(row)} "
        f"{_form(row.get('limit_share'), '4.0%')} of the ceiling, error "
        f"{_form(row.get('error'), '.1e')}"
    )


def _rate(row: dict[str, Any]) -> str:
    """Return TFLOP/s, or GB/s for what moves bytes only."""
    if row.get("tflops") and float(row["tflops"]) > 0:
        return f"{_form(row['tflops'], '5.0f')} TFLOP/s"
    return f"{_form(row.get('gbs'), '5.0f')} GB/s   "


def _form(value: Any, how: str) -> str:
    try:
        return format(float(value), how)
    except (TypeError, ValueError):
        return "-"


def summary(out: Path) -> Iterator[str]:
    """Yield how stages ended, what is wrong, and each backend's time beside its best peer's."""
    report = read_json(out / REPORT)
    yield "stages: " + ", ".join(
        f"{stage['name']} {stage['outcome']} {stage['seconds']:.0f} s"
        for stage in report.get("stages", ())
    )
    environment = report.get("environment", {})
    if "limits" in environment:
        limits = environment["limits"]
        yield (
            f"{environment['gpu']}: {limits['flops'] / 1e12:.0f} TFLOP/s, "
            f"copy {limits['bandwidth'] / 1e12:.2f} TB/s"
        )
    yield from _checks(read_rows(out / CHECKS))
    yield from times(read_rows(out / RESULTS))


def _checks(rows: Sequence[dict[str, str]]) -> Iterator[str]:
    """Yield a line for each backend, and the tests that failed."""
    by: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        if row["what"] == "check":
            by[row["backend"]].append(row)
    for backend, backend_rows in by.items():
        outcomes = [row["outcome"] for row in backend_rows]
        counts = ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes))
        yield f"check {backend}: {counts}"
        for row in backend_rows:
            if row["outcome"] != "right":
                label = " ".join((row["dtype"], row["head_dim"], row["form"], row["worst"]))
                yield f"  {row['outcome']}: {label} {row['words'][:120]}"
    tests = [row for row in rows if row["what"] == "test"]
    failed = [row for row in tests if row["outcome"] == "failed" and row["form"] != "all"]
    for row in tests:
        if row["form"] == "all":
            yield f"tests: {row['words']}"
    for row in failed[:_MOST_TESTS]:
        yield f"  failed: {row['form'].split('/')[-1][:110]}: {row['words'][:80]}"
    if len(failed) > _MOST_TESTS:
        yield f"  and {len(failed) - _MOST_TESTS} more: {CHECKS}"


def times(rows: Sequence[dict[str, str]]) -> Iterator[str]:
    """Yield, for each case, every time and its ratio to the best peer that computes the same."""
    cases: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        cases[row["suite"], row["shape"], row["direction"]].append(row)
    for (suite, shape, direction), rows_of_case in cases.items():
        yield f"{suite}, {shape}, {direction}:"
        peers = [row for row in rows_of_case if not is_ours(row) and _ms(row) and _is_same(row)]
        best = min(peers, key=lambda row: _ms(row) or 0.0, default=None)
        for row in rows_of_case:
            yield "  " + _line(row, best)


def _line(row: dict[str, str], best: dict[str, str] | None) -> str:
    name = label(row)
    if row["reason"]:
        return f"{name:56.56} {row['reason'][:100]}"
    ratio = ""
    if best is not None and is_ours(row):
        ratio = f"  {(_ms(row) or 0) / (_ms(best) or 1):.2f} of {best['contender']}"
    return (
        f"{name:56.56} {_form(row['ms'], '9.3f')} ms {_rate(row)} "
        f"{_form(row.get('limit_share'), '4.0%')}{ratio}"
    )


def label(row: dict[str, Any]) -> str:
    """Return a contender's name, which of a library's kernels it took, and its setting."""
    name, kernel, setting = row["contender"], row.get("kernel") or "", row.get("setting") or ""
    if kernel and setting.startswith("GENHOI_FLASH="):
        setting = ""  # the kernel says it
    return ", ".join(filter(None, (name, kernel if kernel not in name else "", setting)))


def ms_words(ms: float) -> str:
    """Format milliseconds with three digits, or all of them from a second on."""
    return f"{ms:.3g}" if ms < 999.5 else f"{ms:,.0f}"


def is_apart(row: dict[str, Any]) -> bool:
    """Say whether the row was timed in a stage without peers, for its setting."""
    return bool(row["setting"])


def is_ours(row: dict[str, Any]) -> bool:
    """Say whether the row is a contender of this project."""
    return backend_of(row["contender"]) is not None or row["contender"].startswith("genhoi")


def _is_same(row: dict[str, str]) -> bool:
    """Say whether the peer computes the op's function."""
    return not any(phrase in row["contender"] for phrase in ("no mask", "bare traffic"))


def _ms(row: dict[str, str]) -> float | None:
    return float(row["ms"]) if row["ms"] and not row["reason"] else None
