"""Draws architecture.png from the code's own imports: python docs/draw_architecture.py

With ``--check`` nothing is drawn. Imports that break the rule (``FLOORS`` in rooms.py) are printed,
and the exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from floor_plan import (
    BOX_HEIGHT,
    LINES_SIZE,
    MARGIN,
    NAME_SIZE,
    WIDTH,
    Layout,
    area_of,
    label,
)
from rooms import House

ROOT = Path(__file__).resolve().parents[1]

INK, QUIET, FAULT = "#222222", "#666666", "#d55e00"
COLOURS = {  # Okabe and Ito's, which colour-blind people tell apart, and tints of them
    "genhoi/": ("#0072b2", "#cfe5f3"),
    "genhoi_kernels": ("#b07c00", "#fbeac4"),
    "csrc": ("#00795a", "#cdebe0"),
    "": ("#777777", "#ececec"),
}
"""By area: the edge's and the face's."""


def main() -> int:
    """Draw the picture beside this script, or check the rule. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="Draw nothing; fail on a broken rule.")
    check_only = parser.parse_args().check
    house = House(ROOT)
    faults = house.faults()
    for fault in faults:
        print(fault)
    if not check_only:
        draw(house, Path(__file__).with_name("architecture.png"))
    return 1 if check_only and faults else 0


def draw(house: House, path: Path) -> None:
    """Write the picture of a house."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    layout = Layout(house)
    height = layout.height + 1.05
    figure = plt.figure(figsize=(WIDTH, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))
    ax.axis("off")
    _draw_areas(ax, layout)
    for pair, points in layout.paths.items():
        _draw_arrow(ax, house, pair, points)
    for room, (x, y) in layout.place.items():
        _draw_room(ax, room, house.lines[room], x, y, layout.width[room])
    _draw_legend(ax, house, layout)
    figure.savefig(path, dpi=110)


def _draw_areas(ax: object, layout: Layout) -> None:
    from matplotlib.patches import FancyBboxPatch

    titles = {
        "genhoi/": "genhoi: the method on a video model",
        "genhoi_kernels": "genhoi_kernels: the op; torch and numpy alone",
        "csrc": "csrc: compiled kernels",
    }
    for area, title in titles.items():
        tops = [y for room, (_, y) in layout.place.items() if area_of(room) == area]
        if not tops:
            continue
        y0, y1 = min(tops) - 0.38, max(tops) + BOX_HEIGHT + 0.12
        patch = FancyBboxPatch(
            (MARGIN, y0),
            WIDTH - 2 * MARGIN,
            y1 - y0,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor=COLOURS[area][1],
            alpha=0.35,
            edgecolor="none",
        )
        ax.add_patch(patch)  # type: ignore[attr-defined]
        ax.text(  # type: ignore[attr-defined]
            WIDTH - MARGIN - 0.12,
            y0 + 0.15,
            title,
            fontsize=10,
            weight="bold",
            color=COLOURS[area][0],
            ha="right",
            va="center",
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5},
            zorder=3,
        )


def _draw_room(ax: object, room: str, lines: int, x: float, y: float, width: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    edge, face = COLOURS[area_of(room)]
    patch = FancyBboxPatch(
        (x - width / 2, y),
        width,
        BOX_HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.05",
        facecolor=face,
        edgecolor=edge,
        linewidth=0.9,
        zorder=3,
    )
    ax.add_patch(patch)  # type: ignore[attr-defined]
    middle = y + BOX_HEIGHT / 2
    ax.text(  # type: ignore[attr-defined]
        x - width / 2 + 0.08,
        middle,
        label(room),
        fontsize=NAME_SIZE,
        va="center",
        color=INK,
        zorder=4,
    )
    ax.text(  # type: ignore[attr-defined]
        x + width / 2 - 0.08,
        middle,
        f"{lines:,}",
        fontsize=LINES_SIZE,
        va="center",
        ha="right",
        color=QUIET,
        zorder=4,
    )


def _draw_arrow(
    ax: object, house: House, pair: tuple[str, str], points: Sequence[tuple[float, float]]
) -> None:
    """Draw one arrow: curves between floors, straight lines past them."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    is_fault = pair in house.not_down()
    vertices, codes = [points[0]], [Curve.MOVETO]
    for i in range(1, len(points)):
        (x0, y0), (x1, y1) = points[i - 1], points[i]
        if i % 2 and not is_fault:
            bend = (y1 - y0) * 0.55
            vertices += [(x0, y0 + bend), (x1, y1 - bend), (x1, y1)]
            codes += [Curve.CURVE4] * 3
        else:
            vertices.append((x1, y1))
            codes.append(Curve.LINETO)
    at_run_time = all(found.at_run_time for found in house.between[pair])
    patch = FancyArrowPatch(
        path=Curve(vertices, codes),
        arrowstyle="-|>",
        mutation_scale=8,
        color=FAULT if is_fault else COLOURS[area_of(pair[0])][0],
        linewidth=2.2 if is_fault else 1.0,
        linestyle=(0, (4, 2)) if at_run_time else "-",
        zorder=5 if is_fault else 2,
    )
    ax.add_patch(patch)  # type: ignore[attr-defined]


def _draw_legend(ax: object, house: House, layout: Layout) -> None:
    y = layout.height + 0.32
    if house.apart:
        apart = ", ".join(f"{room} ({house.lines[room]:,})" for room in house.apart)
        ax.text(  # type: ignore[attr-defined]
            MARGIN + 0.1,
            y,
            f"apart, without an arrow: {apart}",
            fontsize=8.5,
            color=INK,
            va="center",
        )
    faults = len(house.faults())
    verdict = "" if faults else "No arrow goes up, and no files import each other."
    told = (
        "Drawn from the sources by docs/draw_architecture.py. Numbers are lines. An arrow is an "
        "import or an include, dashed: found at run time.\n"
        f"Arrows that a chain of others implies are left out. {verdict}"
    )
    ax.text(  # type: ignore[attr-defined]
        MARGIN + 0.1, y + 0.35, told, fontsize=8, color=QUIET, va="center", linespacing=1.4
    )
    if faults:
        ax.text(  # type: ignore[attr-defined]
            WIDTH - MARGIN - 0.1,
            y,
            f"{faults} imports break the rule (--check lists them)",
            fontsize=9,
            color=FAULT,
            weight="bold",
            va="center",
            ha="right",
        )


if __name__ == "__main__":
    sys.exit(main())
