"""The rules of the tree: imports go one way, sizes stay small, names say what a thing is."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = (  # a room imports only from those before it
    "errors",
    "extensions",
    "seeds",
    "torch_private",
    "config",
    "distributed",
    "files",
    "ops",
    "layers",
    "models",
    "engine",
    "generation",
    "data",
    "training",
    "plan",
    "stages",
    "tools",
    "commands",
    "cli",
    "__main__",
)
FOLDERS = ("megalite", "csrc", "tests", "benchmarks")
SOURCE = (".py", ".cpp", ".h", ".cu", ".cuh", ".inc")
MOST_FILE_LINES = 500
MOST_FUNCTION_LINES = 60
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}
AGING_NAMES = {"fast", "new", "old", "optimized", "optimised", "v2"}
READS_ENVIRONMENT = {
    "cli.py",  # torchrun's variables
    "files/urls.py",  # where a person keeps caches
    "tools/demo.py",  # hands its own on to the commands that it starts
}


def sources(*folders: str) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SOURCE and path.is_file()
    )


def python_files(*folders: str) -> list[Path]:
    return [path for path in sources(*folders) if path.suffix == ".py"]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Each module of megalite that a file imports, wherever in the file, with its line."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "." * node.level
        elif isinstance(node, ast.ImportFrom) and node.module == "megalite":
            yield from ((node.lineno, f"megalite.{name.name}") for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "megalite").parts[0].removesuffix(".py")


def test_every_room_has_its_place():
    rooms = {room_of(path) for path in python_files("megalite")} - {"__init__"}
    assert rooms == set(ROOMS)


def test_imports_go_one_way():
    wrong = []
    for path in python_files("megalite"):
        room = room_of(path)
        if room == "__init__":
            continue
        allowed = set(ROOMS[: ROOMS.index(room) + 1])
        for line, module in imported(path):
            parts = module.split(".")
            if parts[0] == "megalite" and parts[1] in ROOMS and parts[1] not in allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {room} imports {module}")
            elif parts[0] in ("", "tests", "benchmarks"):
                wrong.append(
                    f"{path.relative_to(ROOT)}:{line}: relative or foreign import {module}"
                )
    assert not wrong, "\n".join(wrong)


def modules_imported() -> dict[str, set[str]]:
    """The modules of megalite that each of them imports, at its top or in a function."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in python_files("megalite")
    }
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        names = set()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        found[name] = names & set(paths) - {name}
    return found


def test_no_module_imports_itself_through_others():
    graph, done = modules_imported(), set()

    def walk(name: str, path: tuple[str, ...]) -> list[str]:
        if name in path:
            return [" -> ".join((*path[path.index(name) :], name))]
        if name in done:
            return []
        circles = [c for other in sorted(graph[name]) for c in walk(other, (*path, name))]
        done.add(name)
        return circles

    circles = [circle for name in sorted(graph) for circle in walk(name, ())]
    assert not circles, "\n".join(circles)


def test_the_command_line_imports_nothing_heavy():
    code = "import sys, megalite.cli; print(*{'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == ""


def test_the_environment_is_read_in_few_places():
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in python_files("megalite")
        if str(path.relative_to(ROOT / "megalite")) not in READS_ENVIRONMENT
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\bos\.(environ|getenv)\b", line)
    ]
    assert not wrong, "\n".join(wrong)


def test_files_stay_short():
    sizes = {path: len(path.read_bytes().splitlines()) for path in sources(*FOLDERS)}
    wrong = [
        f"{path.relative_to(ROOT)}: {size} lines"
        for path, size in sizes.items()
        if size >= MOST_FILE_LINES
    ]
    assert not wrong, "\n".join(wrong)


def definitions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node


def test_functions_stay_short():
    wrong = []
    for path in [*python_files(*FOLDERS), ROOT / "setup.py"]:
        for node in definitions(path):
            lines = node.end_lineno - node.lineno + 1
            if not is_class(node) and lines >= MOST_FUNCTION_LINES:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}, {lines} lines")
    assert not wrong, "\n".join(wrong)


def is_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef)


def words(name: str) -> set[str]:
    """The words of a snake_case or CamelCase name."""
    return set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_"))


def test_paths_say_what_they_hold():
    wrong = [
        str(path.relative_to(ROOT))
        for path in sources(*FOLDERS)
        for part in path.relative_to(ROOT).with_suffix("").parts
        if words(part) & (EMPTY_NAMES | AGING_NAMES)
    ]
    assert not wrong, "\n".join(wrong)


def test_definitions_say_what_they_do():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        for path in python_files("megalite", "benchmarks")
        for node in definitions(path)
        if words(node.name) & (EMPTY_NAMES | (AGING_NAMES if is_class(node) else set()))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("word", ["TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error"])
def test_nothing_is_left_for_later(word):
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources(*FOLDERS)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if word in line
    ]
    assert not wrong, "\n".join(wrong)
