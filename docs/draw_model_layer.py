"""Draws model_layer.png: python docs/draw_model_layer.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

VIDEO, REFERENCE, NEW, PLAIN = "#dbe8f6", "#fbe3c8", "#cfe8cf", "#f2f2f2"


def box(
    ax: Axes, x: float, y: float, w: float, h: float, text: str, colour: str, size: float = 9
) -> None:
    """A box whose lower left corner is (x, y)."""
    shape = FancyBboxPatch(
        (x, y),
        w,
        h,
        boxstyle="round,pad=0.02,rounding_size=0.08",
        facecolor=colour,
        edgecolor="#555555",
        linewidth=0.9,
    )
    ax.add_patch(shape)
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size)


def arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str = "#333333",
    text: str = "",
    at: tuple[float, float] = (0, 0),
    dashed: bool = False,
    bend: float = 0,
) -> None:
    """An arrow, labelled at a place."""
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=11,
            color=colour,
            linewidth=1.3,
            linestyle="--" if dashed else "-",
            shrinkA=0,
            shrinkB=0,
            connectionstyle=f"arc3,rad={bend}",
        )
    )
    if text:
        ax.text(*at, text, fontsize=8, color=colour, ha="left", va="center")


def stream(ax: Axes, x: float, colour: str, boxes: list[tuple[float, float, str, str]]) -> None:
    """A column of boxes joined by arrows, from the top down: (y, height, text, colour)."""
    for (y, h, text, own), below in zip(boxes, [*boxes[1:], None], strict=True):
        box(ax, x, y, 3.9, h, text, own or colour)
        if below is not None:
            arrow(ax, (x + 1.95, y), (x + 1.95, below[0] + below[1]))


def main() -> None:
    """Write the figure beside this script."""
    figure, ax = plt.subplots(figsize=(10.4, 7.6))
    ax.set(xlim=(0, 13), ylim=(0, 9.6))
    ax.axis("off")
    for x, w, title in (
        (0.15, 4.5, "reference stream: once a clip"),
        (7.55, 4.5, "video stream: every step and branch"),
    ):
        panel = FancyBboxPatch(
            (x, 0.25),
            w,
            8.75,
            boxstyle="round,pad=0.02,rounding_size=0.15",
            fill=False,
            edgecolor="#999999",
            linestyle=":",
        )
        ax.add_patch(panel)
        ax.text(x + w / 2, 9.25, title, ha="center", fontsize=10.5, weight="bold")

    stream(
        ax,
        0.45,
        REFERENCE,
        [
            (8.05, 0.75, "reference latents [1 or B, C, 1, h, w]\n[latent | 4 zeros | latent]", ""),
            (7.1, 0.5, "patch embedding, timestep 0", ""),
            (5.75, 0.85, "q, k, v = W x + up(down(x))\nLoRA, rank 128", NEW),
            (4.75, 0.6, "RMS norm, head-sliding RoPE", NEW),
            (3.6, 0.75, "attention over itself\nself flow gate", NEW),
            (2.65, 0.5, "o-projection; no cross-attention", ""),
            (1.75, 0.5, "feed-forward", ""),
            (0.6, 0.6, "next block (after the last: dropped)", ""),
        ],
    )
    stream(
        ax,
        7.85,
        VIDEO,
        [
            (8.05, 0.75, "noisy latents, mask, masked video\n[B, 36, F, H, W]", ""),
            (7.1, 0.5, "patch embedding, timestep t", ""),
            (5.75, 0.85, "q, k, v = W x", ""),
            (4.75, 0.6, "RMS norm, 3D RoPE", ""),
            (3.45, 0.95, "reference_attention\nvideo keys + reference keys\nself flow gate", NEW),
            (2.65, 0.5, "o-projection", ""),
            (1.6, 0.75, "cross-attention over text, image\ntext and image flow gates", NEW),
            (0.6, 0.6, "feed-forward; next block", ""),
        ],
    )

    box(
        ax,
        5.1,
        4.3,
        2.0,
        1.1,
        "cached in the\nblock's processor:\nK_ref, V_ref\n[1 or B, M, H, D]",
        NEW,
        8,
    )
    arrow(ax, (4.35, 5.05), (5.1, 4.95), "#b3641a")
    arrow(ax, (7.1, 4.6), (7.85, 4.05), "#b3641a")
    ax.text(
        6.1,
        5.62,
        "dropped when reference, grid,\ndtype, device or weights change",
        fontsize=7.5,
        ha="center",
        color="#b3641a",
    )
    box(ax, 5.1, 2.6, 2.0, 1.0, "mask gate:\nwhich video tokens\nsee which reference", NEW, 8)
    arrow(ax, (7.1, 3.2), (7.85, 3.7), "#2f6f2f")
    box(ax, 5.1, 0.95, 2.0, 0.75, "mask\n[B, 4, F, H, W]\nor tokens", VIDEO, 8)
    arrow(ax, (6.1, 1.7), (6.1, 2.6), "#2f6f2f", "once, in\nset_reference", (6.2, 2.15))
    ax.text(6.1, 7.2, "the base's own blocks\nand weights on both sides", ha="center", fontsize=8.5)
    arrow(ax, (5.3, 6.85), (4.5, 6.4), "#777777", dashed=True)
    arrow(ax, (6.9, 6.85), (7.7, 6.4), "#777777", dashed=True)
    for x, colour, text in (
        (0.6, VIDEO, "video"),
        (2.2, REFERENCE, "reference"),
        (4.1, NEW, "new in GenHOI"),
    ):
        box(ax, x, -0.2, 0.3, 0.2, "", colour)
        ax.text(x + 0.42, -0.1, text, fontsize=8.5, va="center")
    ax.set_ylim(-0.35, 9.6)
    figure.savefig(Path(__file__).with_name("model_layer.png"), dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
