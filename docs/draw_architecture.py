"""Draws architecture.png from the code's own imports: python docs/draw_architecture.py

A room is a folder, or a file where files are the unit. ``FLOORS`` is the rule: an import goes to a
lower floor, or stays inside its room. Everything else is read from the sources: the rooms, their
lines, the imports, the includes, and which Python file calls which C++ file.

With ``--check`` nothing is drawn. Imports that break the rule are printed, and the exit status is
1 if there are any.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

FLOORS = (
    ("genhoi/cli",),
    ("benchmarks",),
    ("genhoi",),
    ("genhoi/editing", "genhoi/training", "genhoi/evaluation", "genhoi/inspection"),
    ("genhoi/data",),
    ("genhoi/bases",),
    ("genhoi/models",),
    ("genhoi/conditioning",),
    ("genhoi/media",),
    ("genhoi/extras",),
    ("genhoi_kernels",),
    ("genhoi_kernels/modules", "genhoi_kernels/tune"),
    ("genhoi_kernels/functional",),
    ("genhoi_kernels/ops",),
    ("genhoi_kernels/backends/registry",),
    ("genhoi_kernels/backends/preferences",),
    ("genhoi_kernels/backends/flash",),
    ("genhoi_kernels/backends/*",),
    ("genhoi_kernels/backends/native", "genhoi_kernels/backends/device_tables"),
    ("genhoi_kernels/backends/protocol",),
    ("genhoi_kernels/reference", "genhoi_kernels/schema"),
    ("genhoi_kernels/spec",),
    ("genhoi_kernels/checks",),
    ("genhoi_kernels/*",),
    ("csrc",),
    ("csrc/cpu", "csrc/cuda"),
    ("csrc/cuda/sm*/instantiations", "csrc/cpu/*"),
    ("csrc/cuda/sm*", "csrc/cpu/gemm"),
    ("csrc/cuda/common",),
    ("csrc/cuda/[*].h", "csrc/cpu/[*].h"),
    ("csrc/[*].h",),
)
"""From the top down. A room stands on the floor that names it, else where a pattern fits first."""

PUBLIC_NAMES = ("genhoi/__init__.py", "genhoi/convert.py")
DOORS = ("benchmarks", "genhoi")
"""Rooms that import from everywhere: a chain of imports through one of them implies no arrow."""

PYTHON_FOLDERS = ("genhoi", "genhoi_kernels", "benchmarks", "tools", "build_tools")
CPP_FOLDER = "csrc"
CPP_SUFFIXES = (".h", ".cuh", ".cpp", ".cu")


@dataclass(frozen=True)
class Import:
    """A line of one file that makes it depend on another file of the repository.

    at_run_time: the line calls a function of a compiled library, which nothing includes. for_types:
    the line is for type checkers alone, and never runs.
    """

    source: Path
    line: int
    target: Path
    at_run_time: bool = False
    for_types: bool = False

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


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


class House:
    """The rooms of a checkout, with their lines, and the imports between them."""

    def __init__(self, root: Path) -> None:
        python = _files(root, PYTHON_FOLDERS, (".py",))
        cpp = _files(root, (CPP_FOLDER,), CPP_SUFFIXES)
        texts = {path: (root / path).read_text(encoding="utf-8") for path in (*python, *cpp)}
        self.imports = [
            *_python_imports(python, texts),
            *_includes(cpp, texts),
            *_calls_of_libraries(python, cpp, texts),
        ]
        shared_headers = _headers_for_subfolders(self.imports)
        self.room = {path: _room(path, shared_headers) for path in texts}
        self.lines: dict[str, int] = defaultdict(int)
        for path, text in texts.items():
            self.lines[self.room[path]] += text.count("\n")
        self.between: dict[tuple[str, str], list[Import]] = defaultdict(list)
        for found in self.imports:
            pair = self.room[found.source], self.room[found.target]
            if pair[0] != pair[1]:
                self.between[pair].append(found)
        linked = {room for pair in self.between for room in pair}
        self.apart = sorted(set(self.lines) - linked)
        self.floor = {room: _floor(room) for room in sorted(linked)}

    def faults(self) -> list[str]:
        """Describe rooms without a floor, imports that do not go down, and circles of files."""
        homeless = [room for room, floor in self.floor.items() if floor is None]
        faults = [f"{room} stands on no floor: name it in FLOORS" for room in homeless]
        for pair in self.not_down():
            first, *others = self.between[pair]
            more = f", and {len(others)} more" if others else ""
            faults.append(f"{pair[0]} -> {pair[1]} does not go down: {first}{more}")
        for circle in _circles(self.imports):
            faults.append("files that import each other: " + " -> ".join(map(str, circle)))
        return faults

    def not_down(self) -> list[tuple[str, str]]:
        """List the pairs of rooms whose import goes up, or stays on its floor."""
        return [
            (source, target)
            for source, target in self.between
            if (self.floor[source] is not None and self.floor[target] is not None)
            and self.floor[source] >= self.floor[target]  # type: ignore[operator]
        ]

    def drawn(self) -> list[tuple[str, str]]:
        """List the arrows to draw: those that no chain of other arrows implies."""
        down = set(self.between) - set(self.not_down())
        targets: dict[str, set[str]] = defaultdict(set)
        for source, target in down:
            targets[source].add(target)

        def reaches(start: str, goal: str) -> bool:
            steps = targets[start] if start not in DOORS else set()
            return goal in steps or any(reaches(step, goal) for step in steps)

        return sorted(
            (source, target)
            for source, target in down
            if not any(reaches(step, target) for step in targets[source] - {target})
        )


def _files(root: Path, folders: Sequence[str], suffixes: Sequence[str]) -> list[Path]:
    """List the sources below some folders, relative to the root, without tests."""
    paths = (p for name in folders for p in (root / name).rglob("*") if p.suffix in suffixes)
    relative = (path.relative_to(root) for path in paths)
    return sorted(path for path in relative if "tests" not in path.parts)


def _python_imports(paths: Sequence[Path], texts: dict[Path, str]) -> Iterator[Import]:
    """Yield the imports of Python files from each other, those inside functions included."""
    modules = {_module_name(path): path for path in paths}
    trees = {path: ast.parse(texts[path]) for path in paths}
    for path, tree in trees.items():
        for_types = _lines_for_types(tree)
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                package = modules.get(node.module)
                bound = _bound_names(trees[package]) if package else set()
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    is_module = submodule in modules and alias.name not in bound
                    names.append(submodule if is_module else node.module)
            for name in dict.fromkeys(names):
                if name in modules and modules[name] != path:
                    line = node.lineno  # type: ignore[attr-defined]
                    yield Import(path, line, modules[name], for_types=line in for_types)


def _lines_for_types(tree: ast.Module) -> set[int]:
    """The lines of a module that stand under ``if TYPE_CHECKING``."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    ]
    return {inner.lineno for block in blocks for inner in block.body}


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    if parts[0] == "tools":
        parts = parts[2:]  # a project of its own, with its packages in its folder
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _bound_names(tree: ast.Module) -> set[str]:
    """The names that a package's __init__.py binds, which hide submodules of the same name."""
    return {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _includes(paths: Sequence[Path], texts: dict[Path, str]) -> Iterator[Import]:
    """Yield the includes of C++ files from each other."""
    pattern = re.compile(r'^\s*#\s*include "([^"]+)"')
    for path in paths:
        for number, line in enumerate(texts[path].splitlines(), 1):
            if match := pattern.match(line):
                for folder in (path.parent, Path(CPP_FOLDER)):
                    target = Path(*_normal((folder / match[1]).parts))
                    if target in texts:
                        yield Import(path, number, target)
                        break


def _normal(parts: Sequence[str]) -> list[str]:
    kept: list[str] = []
    for part in parts:
        if part == "..":
            kept.pop()
        else:
            kept.append(part)
    return kept


def _calls_of_libraries(
    python: Sequence[Path], cpp: Sequence[Path], texts: dict[Path, str]
) -> Iterator[Import]:
    """Yield what is found at run time: operators, the extension module, and C launchers."""
    definitions: dict[str, Path] = {}
    for path in cpp:
        for namespace in re.findall(r"TORCH_LIBRARY_FRAGMENT\((\w+),", texts[path]):
            definitions[rf"torch\.ops\.{namespace}\."] = path
        for module in re.findall(r"PYBIND11_MODULE\((\w+)|PyInit_(\w+)", texts[path]):
            name = next(filter(None, module), "")
            definitions[rf'import_module\("[\w.]+\.{name}"\)'] = path
        if path.suffix == ".cu":
            for launcher in re.findall(r"^\w[\w ]*?\b(genhoi_\w+)\(", texts[path], re.MULTILINE):
                definitions[rf"\b{launcher}\b"] = path
    for pattern, target in definitions.items():
        callers = python if "\\." in pattern else [p for p in cpp if p.suffix == ".cpp"]
        for path in callers:
            if match := re.search(pattern, texts[path]):
                line = texts[path].count("\n", 0, match.start()) + 1
                yield Import(path, line, target, at_run_time=True)


def _headers_for_subfolders(imports: Sequence[Import]) -> set[Path]:
    """The headers between a folder and its subfolders, and what those include beside them.

    Such a header is included from a subfolder that the folder itself includes: it is a room of its
    own, below both.
    """
    includes = [found for found in imports if found.source.parts[0] == CPP_FOLDER]
    headers: set[Path] = set()
    for found in includes:
        folder = found.target.parent
        if folder not in list(found.source.parents)[1:]:
            continue
        subfolder = folder / found.source.relative_to(folder).parts[0]
        if any(i.source.parent == folder and subfolder in i.target.parents for i in includes):
            headers.add(found.target)
    while True:
        more = {
            found.target
            for found in includes
            if found.source in headers and found.target.parent == found.source.parent
        }
        if more <= headers:
            return headers
        headers |= more


def _room(path: Path, shared_headers: set[Path]) -> str:
    """The room of a file: a folder's name, or a file's without its suffix."""
    first, *middle, name = path.with_suffix("").parts
    if first == "tools":
        return f"tools/{middle[0]}"
    if first in ("benchmarks", "build_tools"):
        return first
    if first == "genhoi":
        return "genhoi" if path.as_posix() in PUBLIC_NAMES else f"genhoi/{[*middle, name][0]}"
    if first == CPP_FOLDER:
        folder = path.parent.as_posix()
        return f"{folder}/*.h" if path in shared_headers else folder
    if middle[:1] == ["backends"] and (middle[1:] or name != "__init__"):
        return f"genhoi_kernels/backends/{middle[1] if middle[1:] else name}"
    room = middle[0] if middle else name
    is_package = room.startswith("_") or room == "backends"
    return "genhoi_kernels" if is_package else f"genhoi_kernels/{room}"


def _floor(room: str) -> int | None:
    for i, rooms in enumerate(FLOORS):
        if room in rooms or any("[" in pattern and fnmatch(room, pattern) for pattern in rooms):
            return i
    for i, rooms in enumerate(FLOORS):
        if any(_fits(room, pattern) for pattern in rooms):
            return i
    return None


def _fits(room: str, pattern: str) -> bool:
    return fnmatch(room, pattern) and room.count("/") == pattern.count("/")


def _circles(imports: Sequence[Import]) -> list[list[Path]]:
    """Find circles of files that import each other.

    Imports for type checkers do not count, nor those within a tool, which is a project of its own.
    """
    targets: dict[Path, set[Path]] = defaultdict(set)
    for found in imports:
        own_project = found.source.parts[0] == "tools"
        if not (found.at_run_time or found.for_types or own_project):
            targets[found.source].add(found.target)
    circles: list[list[Path]] = []
    done: set[Path] = set()

    def visit(path: Path, trail: list[Path]) -> None:
        if path in trail:
            circle = trail[trail.index(path) :]
            first = circle.index(min(circle))
            circles.append([*circle[first:], *circle[:first], min(circle)])
        elif path not in done:
            for target in sorted(targets[path]):
                visit(target, [*trail, path])
            done.add(path)

    for path in sorted(targets):
        visit(path, [])
    return circles


# The picture. Lengths are in inches.

WIDTH, PITCH, BOX_HEIGHT, MARGIN = 9.4, 0.5, 0.25, 0.15
LANE = 0.16
"""The width that an arrow takes where it passes a floor."""
NAME_SIZE, LINES_SIZE = 9, 7
"""Of the text in a room, in points."""
INK, QUIET, FAULT = "#222222", "#666666", "#d55e00"
AREAS = {  # Okabe and Ito's colours, which colour-blind people tell apart, and tints of them
    "genhoi/": ("#0072b2", "#cfe5f3"),
    "genhoi_kernels": ("#b07c00", "#fbeac4"),
    "csrc": ("#00795a", "#cdebe0"),
    "": ("#777777", "#ececec"),
}


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


def _area(room: str) -> str:
    return next(area for area in AREAS if f"{room}/".startswith(area))


def _label(room: str) -> str:
    """A room's name without the area that it stands in."""
    for prefix in ("genhoi_kernels/", "csrc/", "genhoi/"):
        if room.startswith(prefix):
            return room.removeprefix(prefix)
    names = {"genhoi": "genhoi: public names", "genhoi_kernels": "genhoi_kernels: public names"}
    return {**names, "csrc": "operators, extension module"}.get(room, room)


def _room_width(room: str, lines: int) -> float:
    from matplotlib.textpath import TextPath

    texts = (_label(room), NAME_SIZE), (f"{lines:,}", LINES_SIZE)
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
        self.width = {room: _room_width(room, house.lines[room]) for room in house.lines}
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
            area = _area(next(str(node) for node in floor if isinstance(node, str)))
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


def _draw_areas(ax: object, layout: Layout) -> None:
    from matplotlib.patches import FancyBboxPatch

    titles = {
        "genhoi/": "genhoi: the method on a video model",
        "genhoi_kernels": "genhoi_kernels: the op; torch and numpy alone",
        "csrc": "csrc: compiled kernels",
    }
    for area, title in titles.items():
        tops = [y for room, (_, y) in layout.place.items() if _area(room) == area]
        if not tops:
            continue
        y0, y1 = min(tops) - 0.38, max(tops) + BOX_HEIGHT + 0.12
        patch = FancyBboxPatch(
            (MARGIN, y0),
            WIDTH - 2 * MARGIN,
            y1 - y0,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor=AREAS[area][1],
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
            color=AREAS[area][0],
            ha="right",
            va="center",
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5},
            zorder=3,
        )


def _draw_room(ax: object, room: str, lines: int, x: float, y: float, width: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    edge, face = AREAS[_area(room)]
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
        _label(room),
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
        color=FAULT if is_fault else AREAS[_area(pair[0])][0],
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
