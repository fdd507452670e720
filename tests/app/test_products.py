"""Products in three dimensions: rays against a search along each, labels, and all kinds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from genhoi.data.capsules import cast_capsule
from genhoi.data.labels import LABEL_HEIGHT, draw_label, far_color, some_color
from genhoi.data.motion import light_from, smooth_path, turned
from genhoi.data.products import PRODUCTS, some_product
from genhoi.data.raycast import Camera, Canvas, Hits, Rays, Vector, Window
from genhoi.data.solids import Ball, Box, Revolved, Ring, Solid

SIDE = 25
STEP = 0.01
Inside = Callable[[Tensor, Tensor, Tensor], Tensor]


def rays_from(start: tuple[float, float, float]) -> Rays:
    """Rays from one point to a grid of points round the origin."""
    place = torch.linspace(-1.35, 1.35, SIDE)
    y, x = torch.meshgrid(place, place, indexing="ij")
    ends = torch.stack([x, y, 0.1 * x * y], -1)
    along = torch.nn.functional.normalize(ends - torch.tensor(start), dim=-1)[None]
    first = [torch.full((1, 1, 1), part) for part in start]
    return Rays((first[0], first[1], first[2]), along.unbind(-1))  # type: ignore[arg-type]


def points_at(rays: Rays, distance: Tensor | float) -> Vector:
    x, y, z = (s + distance * a for s, a in zip(rays.start, rays.along, strict=True))
    return x, y, z


def searched(rays: Rays, inside: Inside, far: float = 6.5) -> Tensor:
    """The first step along each ray that is inside; infinite where none is."""
    first = torch.full(rays.along[0].shape, torch.inf)
    for step in range(int(far / STEP), 0, -1):
        found = inside(*points_at(rays, step * STEP))
        first = torch.where(found, step * STEP, first)
    return first


def check_distances(found: Tensor, wanted: Tensor) -> None:
    """Rays that graze may differ."""
    hit, missed = found.isfinite(), found.isinf()
    assert 60 < int(hit.sum()) and int(missed.sum()) > 20, "the test sees both"
    assert int((hit != wanted.isfinite()).sum()) <= 0.02 * hit.numel()
    both = hit & wanted.isfinite()
    apart = (found - wanted)[both]
    assert float(apart.abs().quantile(0.97)) < 1.5 * STEP
    assert float(apart.max()) < 1.5 * STEP, "no hit lies behind the first one"


def check_normals(rays: Rays, distance: Tensor, normal: Vector, inside: Inside) -> None:
    """A step outwards leaves the body, a step inwards enters it."""
    hit = distance.isfinite()
    length = torch.stack(normal).square().sum(0)[hit]
    torch.testing.assert_close(length, torch.ones_like(length))
    x, y, z = points_at(rays, torch.where(hit, distance, 0.0))
    for way, wanted in ((0.02, False), (-0.02, True)):
        moved = inside(x + way * normal[0], y + way * normal[1], z + way * normal[2])
        assert float((moved[hit] == wanted).float().mean()) > 0.95
    facing = sum(n * a for n, a in zip(normal, rays.along, strict=True))
    assert float(facing[hit].max()) < 0.05  # type: ignore[index]


def in_box(half: tuple[float, float, float]) -> Inside:
    return lambda x, y, z: (x.abs() <= half[0]) & (y.abs() <= half[1]) & (z.abs() <= half[2])


def in_ball(half: tuple[float, float, float]) -> Inside:
    return lambda x, y, z: (x / half[0]) ** 2 + (y / half[1]) ** 2 + (z / half[2]) ** 2 <= 1


def in_revolved(heights: list[float], radii: list[float], flat: float) -> Inside:
    def inside(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        radius = torch.from_numpy(np.interp(y.numpy(), heights, radii)).float()
        between = (y >= heights[0]) & (y <= heights[-1])
        return between & (x.square() + (z / flat).square() <= radius.square())

    return inside


def cone(*points: tuple[float, float]) -> tuple[Ring, ...]:
    rings = []
    for (y0, r0), (y1, r1) in pairwise(points):
        slope = (r1 - r0) / (y1 - y0)
        rings.append(Ring((y0, y1), (r0, r1), (slope, slope)))
    return tuple(rings)


BOTTLE = ((-1.0, 0.2), (-0.6, 0.18), (-0.3, 0.6), (0.5, 0.6), (1.0, 0.4))
SOLIDS: dict[str, tuple[Solid, Inside]] = {
    "box": (Box((0.6, 1.0, 0.35)), in_box((0.6, 1.0, 0.35))),
    "ball": (Ball((0.9, 1.0, 0.7)), in_ball((0.9, 1.0, 0.7))),
    "cylinder": (
        Revolved(cone((-1.0, 0.55), (1.0, 0.55))),
        in_revolved([-1, 1], [0.55, 0.55], 1.0),
    ),
    "flat bottle": (
        Revolved(cone(*BOTTLE), flat=0.6),
        in_revolved([y for y, _ in BOTTLE], [r for _, r in BOTTLE], 0.6),
    ),
}
STARTS = ((0.3, -0.4, -5.0), (-3.0, -2.5, -2.0), (1.0, 3.0, -3.0))


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", SOLIDS)
def test_rays_meet_a_solid_where_a_search_along_them_does(
    name: str, start: tuple[float, float, float]
) -> None:
    solid, inside = SOLIDS[name]
    rays = rays_from(start)
    hits = solid.cast(rays)
    check_distances(hits.distance, searched(rays, inside))
    check_normals(rays, hits.distance, hits.normal, inside)


def test_rays_meet_a_capsule_where_a_search_along_them_does() -> None:
    """Thick at one end; also one of equal ends, seen along its axis."""
    rays = rays_from((0.0, 0.0, 0.0))
    along = rays_from((0.0, 0.0, -4.0)).along
    for a, b, radii in (
        ((-0.7, 0.3, 4.4), (0.6, -0.4, 3.5), (0.5, 0.25)),
        ((0.6, -0.4, 3.5), (-0.7, 0.3, 4.4), (0.25, 0.5)),
        ((0.02, 0.01, 3.2), (0.03, 0.0, 4.6), (0.55, 0.55)),
    ):
        ends = torch.tensor([[a], [b]])

        def inside(
            x: Tensor,
            y: Tensor,
            z: Tensor,
            ends: Tensor = ends,
            radii: tuple[float, float] = radii,
        ) -> Tensor:
            found = torch.zeros(x.shape, dtype=torch.bool)
            for part in torch.linspace(0, 1, 60):
                center, radius = (
                    torch.lerp(*ends[:, 0], part),
                    torch.lerp(*torch.tensor(radii), part),
                )
                away = (x - center[0]) ** 2 + (y - center[1]) ** 2 + (z - center[2]) ** 2
                found |= away <= radius**2
            return found

        here = Rays(rays.start, along)
        distance, normal = cast_capsule(along, ends, radii)
        coarse = distance.isfinite()
        x, y, z = points_at(here, torch.where(coarse, distance, 0.0))
        assert 60 < int(coarse.sum()) < coarse.numel() - 20
        check_normals(here, distance, normal, inside)
        # Nothing of it lies before a hit, or on a ray that misses.
        for part in (0.3, 0.6, 0.9, 0.99):
            before = points_at(here, torch.where(coarse, part * distance, part * 6))
            assert int(inside(*before).sum()) <= 2
        assert float(inside(x, y, z + 0.02)[coarse].float().mean()) > 0.9


def test_a_label_goes_round_from_the_middle_of_the_front() -> None:
    """On every solid: 0 in front, to the right it grows, to 1 at the back; top to bottom."""
    for name, (solid, _) in SOLIDS.items():
        front, back = (solid.cast(rays_from((0.0, -0.1, z))) for z in (-6.0, 6.0))
        middle = (0, SIDE // 2)
        assert abs(float(front.u[middle][SIDE // 2])) < 0.02, name
        assert abs(abs(float(back.u[middle][SIDE // 2])) - 1) < 0.02, name
        row = front.u[middle][front.distance[middle].isfinite()]
        assert (row.diff() > 0).all() and row[0] < -0.1 < 0.1 < row[-1], name
        column = front.v[0, :, SIDE // 2][front.distance[0, :, SIDE // 2].isfinite()]
        assert (column.diff() > 0).all(), name
        assert float(column.min()) >= -1.001 and float(column.max()) <= 1.001
        assert float(front.u[front.distance.isfinite()].abs().max()) <= 1


def test_the_sides_of_a_box_follow_its_front() -> None:
    box = Box((0.6, 1.0, 0.4))
    seen = box.cast(rays_from((4.0, 0.0, -4.0)))
    right = (seen.normal[0] == 1) & seen.distance.isfinite()
    edge, corner = 0.6 / 2.0, 1.4 / 2.0
    assert float(seen.u[right].min()) > edge - 0.02 and float(seen.u[right].max()) < corner + 0.02
    front = (seen.normal[2] == -1) & seen.distance.isfinite()
    assert float(seen.u[front].max()) < edge + 0.02 and right.any() and front.any()


def test_end_faces_are_told_from_the_label() -> None:
    for name in ("box", "cylinder"):
        above: Hits = SOLIDS[name][0].cast(rays_from((0.0, -4.0, -3.0)))
        below: Hits = SOLIDS[name][0].cast(rays_from((0.0, 4.0, -3.0)))
        assert set(above.end[above.distance.isfinite()].tolist()) == {-1, 0}, name
        assert set(below.end[below.distance.isfinite()].tolist()) == {1, 0}, name


def test_the_nearest_surface_is_painted() -> None:
    canvas = Canvas(2, (6, 8), 1)
    window = Window(torch.tensor([1, 2]), torch.tensor([0, 3]), 3, 4)
    near = torch.full((2, 3, 4), 5.0)
    near[0, 0, 0] = torch.inf
    canvas.paint(window, near, torch.full((2, 3, 4, 1), 0.5))
    canvas.paint(window, near + torch.tensor([1.0, -1.0])[:, None, None], torch.ones(2, 3, 4, 1))
    wanted = torch.zeros(2, 6, 8)
    wanted[0, 1:4, 0:4], wanted[1, 2:5, 3:7] = 0.5, 1.0
    wanted[0, 1, 0] = 0
    assert torch.equal(canvas.views()[..., 0], wanted)


def test_a_window_holds_what_it_is_made_for() -> None:
    """Of a ball's points none is seen outside its window; a window never leaves the frame."""
    camera = Camera(60.0, (40, 70), torch.zeros(3, 2))
    centers = torch.tensor([[[0.0, 0.0, 3.0], [1.5, -0.8, 3.0], [9.0, 9.0, 3.0]]])
    window = camera.window(centers, torch.tensor([[0.4]]))
    surface = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator()), dim=1)
    for view in range(2):
        points = centers[0, view] + 0.4 * surface
        x = (60 * points[:, 0] / points[:, 2] + 35).clamp(0, 69.99)
        y = (60 * points[:, 1] / points[:, 2] + 20).clamp(0, 39.99)
        top, left = int(window.top[view]), int(window.left[view])
        assert float(x.min()) >= left and float(x.max()) <= left + window.width
        assert float(y.min()) >= top and float(y.max()) <= top + window.height
    assert int(window.top.max()) + window.height <= 40
    assert int(window.left.max()) + window.width <= 70
    middle = camera.rays(Window(torch.tensor([20] * 3), torch.tensor([35] * 3), 1, 1))
    assert float(middle[0].abs().max()) < 0.01 and float(middle[2].min()) > 0.99


# ----------------------------------------------------------------------------- labels and products


def test_all_kinds_occur_and_a_seed_gives_the_same_one() -> None:
    pytest.importorskip("skimage")
    kinds = set()
    for seed in range(60):
        one, again = (some_product(np.random.default_rng(seed), "train") for _ in range(2))
        assert one.solid == again.solid and one.label.tobytes() == again.label.tobytes()
        kinds.add((type(one.solid).__name__, one.handle is not None, round(one.shine, 2)))
    assert len(kinds) == len(PRODUCTS)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_label_fits_its_product(name: str) -> None:
    pytest.importorskip("skimage")
    product = PRODUCTS[name](np.random.default_rng(5), "test")
    half = product.solid.half
    assert half[1] == 1 and 0.3 < half[0] < 1.1
    assert product.label.width == round(LABEL_HEIGHT * product.solid.around / 2)
    assert -1 < product.grip[0] < product.grip[1] < 1
    small = product.texture(40)
    assert small.shape[2] == 40 and small.dtype == torch.float32
    assert abs(small.shape[3] / 40 - product.solid.around / 2) < 0.05
    assert product.texture(9999).shape[2] == LABEL_HEIGHT
    assert float(small.min()) >= 0 and float(small.max()) <= 1


def test_the_front_of_a_label_differs_from_its_sides() -> None:
    """More is printed on it than on the quarters beside it."""
    pytest.importorskip("skimage")
    front, sides = 0.0, 0.0
    for seed in range(40):
        label = draw_label(
            np.random.default_rng(seed),
            "train",
            around=1.6,
            front=0.7,
            printed=(0.1, 0.9),
            base=(200, 40, 40),
        )
        pixels = np.asarray(label, np.float32)[40:-40]
        edges = np.abs(np.diff(pixels, axis=1)).mean((0, 2))
        width = len(edges)
        front += float(edges[int(0.3 * width) : int(0.7 * width)].mean())
        sides += float(edges[int(0.2 * width) : int(0.27 * width)].mean())
        assert label.size == (round(1.6 * LABEL_HEIGHT), LABEL_HEIGHT)
        assert label.getpixel((10, 5)) == (200, 40, 40)
    assert front > 3 * sides


def test_far_colours_can_be_told_apart() -> None:
    rng = np.random.default_rng(0)
    weights = np.array([0.3, 0.59, 0.11])
    for _ in range(100):
        color = some_color(rng)
        other = far_color(rng, color)
        assert abs(weights @ np.array(color) - weights @ np.array(other)) > 80


# --------------------------------------------------------------------------------------- the motion


def test_turns_turn_the_right_way() -> None:
    """The front to the left for a positive yaw, the top to the viewer for a positive pitch."""
    zero, angle = np.zeros(1), np.full(1, 0.5)
    front, top = torch.tensor([0.0, 0.0, -1.0]), torch.tensor([0.0, -1.0, 0.0])
    assert (turned(angle, zero, zero)[0] @ front)[0] < -0.4
    assert (turned(zero, angle, zero)[0] @ top)[2] < -0.4
    assert (turned(zero, zero, angle)[0] @ top)[0] > 0.4
    mixed = turned(angle, 0.3 * angle, -angle)[0]
    torch.testing.assert_close(mixed @ mixed.T, torch.eye(3))
    assert torch.linalg.det(mixed) == pytest.approx(1, abs=1e-5)
    light = light_from(np.array([0.5]), np.array([-0.5]))[0]
    assert light[0] > 0 > light[1] and light[2] < 0 and light.norm() == pytest.approx(1)


def test_paths_are_smooth_and_within_bounds() -> None:
    for seed in range(20):
        path = smooth_path(np.random.default_rng(seed), np.linspace(0, 1, 200), -2, 3)
        assert path.min() >= -2 and path.max() <= 3
        assert np.abs(np.diff(path)).max() < 0.12
