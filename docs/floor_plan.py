"""Where the rooms of a picture stand, and along which points its arrows run, in inches."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

from rooms import House

WIDTH, PITCH, BOX_HEIGHT, MARGIN = 9.4, 0.5, 0.25, 0.15
LANE = 0.16
"""The width that an arrow takes where it passes a floor."""
NAME_SIZE, LINES_SIZE = 9, 7
"""Of the text in a room, in points."""


AREAS = ("genhoi/", "genhoi_kernels", "csrc", "")
"""What the names of an area's rooms begin with."""


def area_of(room: str) -> str:
    """Return the area in which a room stands."""
    return next(area for area in AREAS if f"{room}/".startswith(area))


def label(room: str) -> str:
    """A room's name without the area that it stands in."""
    for prefix in ("genhoi_kernels/", "csrc/", "genhoi/"):
        if room.startswith(prefix):
            return room.removeprefix(prefix)
    names = {"genhoi": "genhoi: public names", "genhoi_kernels": "genhoi_kernels: public names"}
    return {**names, "csrc": "operators, extension module"}.get(room, room)


def room_width(room: str, lines: int) -> float:
    from matplotlib.textpath import TextPath

    texts = (label(room), NAME_SIZE), (f"{lines:,}", LINES_SIZE)
    return 0.32 + sum(TextPath((0, 0), t, size=s).get_extents().width for t, s in texts) / 72


class Layout:
    """Where rooms stand and along which points arrows run.

    Arrows that pass a floor take a lane there, as if they were narrow rooms. The order on each
    floor is chosen for few crossings. Rooms are then placed as near as they can be to the rooms
    that they are linked to.
    """

    def __init__(self, house: House) -> None:
        used = sorted({floor for floor in house.floor.values() if floor is not None})
        level = {r: used.index(f) for r, f in house.floor.items() if f is not None}
        faults = [pair for pair in house.not_down() if pair[0] in level and pair[1] in level]
        arrows = [pair for pair in house.drawn() if pair[0] in level and pair[1] in level]
        self.width = {room: room_width(room, house.lines[room]) for room in house.lines}
        chains = {pair: self._chain(pair, level) for pair in arrows}
        floors: list[list[object]] = [[] for _ in used]
        for room, i in level.items():
            floors[i].append(room)
        for pair, chain in chains.items():
            for i, node in enumerate(chain[1:-1], level[pair[0]] + 1):
                floors[i].append(node)
        neighbours: dict[object, list[object]] = defaultdict(list)
        for chain in chains.values():
            for upper, lower in itertools.pairwise(chain):
                neighbours[upper].append(lower)
                neighbours[lower].append(upper)
        floors = _order(floors, neighbours)
        x = self._spread(floors, neighbours)
        # Areas begin with a heading, so there is more room above them.
        self.top: list[float] = []
        y = 0.55
        previous = None
        for floor in floors:
            area = area_of(next(str(node) for node in floor if isinstance(node, str)))
            if previous is not None and area != previous and area and previous:
                y += 0.3
            previous = area or previous
            self.top.append(y)
            y += PITCH
        self.level, self.height = level, y - PITCH + BOX_HEIGHT
        self.place = {room: (x[room], self.top[i]) for room, i in level.items()}
        self.paths: dict[tuple[str, str], list[tuple[float, float]]] = {}
        self._run_arrows(chains, neighbours, x)
        for source, target in faults:
            (x0, y0), (x1, y1) = self.place[source], self.place[target]
            self.paths[source, target] = [(x0, y0), (x1, y1 + BOX_HEIGHT)]

    def _chain(self, pair: tuple[str, str], level: dict[str, int]) -> list[object]:
        between = range(level[pair[0]] + 1, level[pair[1]])
        return [pair[0], *((pair, i) for i in between), pair[1]]

    def _spread(
        self, floors: list[list[object]], neighbours: dict[object, list[object]]
    ) -> dict[object, float]:
        """Give every room and lane its x."""
        widths = {
            node: self.width[node] if isinstance(node, str) else LANE
            for floor in floors
            for node in floor
        }
        x = {}
        for floor in floors:
            for i, node in enumerate(floor):
                x[node] = WIDTH * (i + 1) / (len(floor) + 1)
        lanes: dict[tuple[str, str], list[object]] = defaultdict(list)
        for node in x:
            if not isinstance(node, str):
                lanes[node[0]].append(node)  # type: ignore[index]

        def aim(node: object) -> float:
            """Rooms stand between their neighbours, an arrow's lanes above each other."""
            if isinstance(node, str):
                return _mean([x[n] for n in neighbours[node]], x[node])
            return _mean([x[n] for n in lanes[node[0]]], 0)  # type: ignore[index]

        for sweep in range(200):
            for floor in floors if sweep % 2 else floors[::-1]:
                wanted = [aim(node) for node in floor]
                for node, place in zip(floor, _apart(wanted, floor, widths), strict=True):
                    x[node] = place
        return x

    def _run_arrows(
        self,
        chains: dict[tuple[str, str], list[object]],
        neighbours: dict[object, list[object]],
        x: dict[object, float],
    ) -> None:
        """Spread the arrows over the edges of the rooms that they leave and reach."""
        level_of = {node: i for i, node in self._levels(chains)}
        ports: dict[tuple[object, bool], list[object]] = {}
        for node, others in neighbours.items():
            for is_below in (False, True):
                side = [n for n in others if (level_of[n] > level_of[node]) == is_below]
                ports[node, is_below] = sorted(side, key=lambda n: x[n])

        def port(node: object, other: object, is_below: bool) -> float:
            if not isinstance(node, str):
                return x[node]
            side = ports[node, is_below]
            step = min(0.14, (self.width[node] - 0.2) / max(1, len(side)))
            return x[node] + step * (side.index(other) - (len(side) - 1) / 2)

        for pair, chain in chains.items():
            points: list[tuple[float, float]] = []
            for upper, lower in itertools.pairwise(chain):
                top = self.top[level_of[upper]] + BOX_HEIGHT
                bottom = self.top[level_of[lower]]
                points.append((port(upper, lower, True), top))
                points.append((port(lower, upper, False), bottom))
            self.paths[pair] = points

    def _levels(self, chains: dict[tuple[str, str], list[object]]) -> Iterator[tuple[int, object]]:
        for pair, chain in chains.items():
            yield from enumerate(chain, self.level[pair[0]])


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _order(
    floors: list[list[object]], neighbours: dict[object, list[object]]
) -> list[list[object]]:
    """Order every floor by the mean place of what is linked to it, and keep the best order."""
    best, fewest = floors, _crossings(floors, neighbours)
    current = [list(floor) for floor in floors]
    for sweep in range(80):
        rows = range(1, len(current)) if sweep % 2 == 0 else range(len(current) - 2, -1, -1)
        for i in rows:
            fixed = current[i - 1 if sweep % 2 == 0 else i + 1]
            place = {node: j / len(fixed) for j, node in enumerate(fixed)}
            own = {node: j / len(current[i]) for j, node in enumerate(current[i])}
            current[i].sort(
                key=lambda n: _mean([place[m] for m in neighbours[n] if m in place], own[n])
            )
        crossings = _crossings(current, neighbours)
        if crossings < fewest:
            best, fewest = [list(floor) for floor in current], crossings
    return best


def _crossings(floors: list[list[object]], neighbours: dict[object, list[object]]) -> int:
    count = 0
    for upper, lower in itertools.pairwise(floors):
        place = {node: j for j, node in enumerate(lower)}
        ends = [
            (i, place[m]) for i, node in enumerate(upper) for m in neighbours[node] if m in place
        ]
        count += sum(a < c and b > d for a, b in ends for c, d in ends)
    return count


def _apart(
    wanted: Sequence[float], nodes: Sequence[object], widths: dict[object, float]
) -> list[float]:
    """The places nearest to those wanted at which neighbours on a floor do not overlap."""
    gap = 0.12
    offsets = [0.0]
    for left, right in itertools.pairwise(nodes):
        offsets.append(offsets[-1] + (widths[left] + widths[right]) / 2 + gap)
    # Of places less their offsets, which must not decrease. A lane counts three times, so that
    # rooms give way to arrows, which stay straight.
    groups: list[list[float]] = []
    sizes: list[int] = []
    for place, offset, node in zip(wanted, offsets, nodes, strict=True):
        groups.append([place - offset] * (1 if isinstance(node, str) else 3))
        sizes.append(1)
        while len(groups) > 1 and _mean(groups[-2], 0) > _mean(groups[-1], 0):
            groups[-2:] = [groups[-2] + groups[-1]]
            sizes[-2:] = [sizes[-2] + sizes[-1]]
    least = MARGIN + 0.1 + widths[nodes[0]] / 2
    most = WIDTH - MARGIN - 0.1 - widths[nodes[-1]] / 2 - offsets[-1]
    shifts = [
        min(max(_mean(group, 0), least), most)
        for group, size in zip(groups, sizes, strict=True)
        for _ in range(size)
    ]
    return [shift + offset for shift, offset in zip(shifts, offsets, strict=True)]
