"""The rooms of the repository, read from its sources: their lines, imports, includes, and the rule.

A room is a folder, or a file where files are the unit. ``FLOORS`` is the rule: an import goes to a
lower floor, or stays inside its room. Everything else is read from the sources: the rooms, their
lines, the imports, the includes, and which Python file calls which C++ file.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

FLOORS = (
    ("genhoi/cli",),
    ("benchmarks",),
    ("build_tools",),
    ("genhoi",),
    (
        "genhoi/editing",
        "genhoi/training",
        "genhoi/evaluation",
        "genhoi/inspection",
        "genhoi/masking",
        "genhoi/pipelines",
    ),
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
    ("genhoi_kernels/checks", "genhoi_kernels/layouts"),
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
