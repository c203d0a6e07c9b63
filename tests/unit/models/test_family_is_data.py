"""A family is data: a preset and a name table, and nothing else of it anywhere."""

import ast
import re
from pathlib import Path

import pytest

from megalite.models.families import FAMILIES

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "megalite" / "models" / "families"
SIZES = ROOT / "megalite" / "models" / "presets"
SHARED = ("__init__", "activations", "keys", "rope", "table", "windows")
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in SHARED)
NAMES = {*FAMILIES, *(family.model_type for family in FAMILIES.values()), "glm130b"} - {""}


def test_each_family_is_a_table_and_its_sizes():
    assert len(FILES) == len(FAMILIES) == 26
    sizes = {path.name for path in SIZES.glob("*.py")} - {"__init__.py", "preset.py"}
    assert sizes == {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_family_is_short_and_has_no_class(path):
    text = path.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text)))
    assert not [node for node in nodes if isinstance(node, ast.ClassDef)]
    assert len(text.splitlines()) <= 200
    assert sum(isinstance(node, ast.FunctionDef) for node in nodes) <= 8


def test_no_code_asks_for_a_family():
    """No comparison anywhere in the package has a family's name on one side."""
    wrong = []
    for path in (ROOT / "megalite").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Compare):
                continue
            sides = [node.left, *node.comparators]
            values = {side.value for side in sides if isinstance(side, ast.Constant)}
            attributes = {ast.unparse(side) for side in sides}
            if values & NAMES or attributes & {"family", "family.name", "model_type"}:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    # reading a folder asks each family whether it knows the config; the list asks for a text
    allowed = ("megalite/tools/models.py",)
    assert not [line for line in wrong if not line.startswith(allowed)]


def test_the_document_shows_the_whole_of_one():
    text = (ROOT / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    files = (SIZES / "baichuan.py", FOLDER / "baichuan.py")
    assert shown == [path.read_text(encoding="utf-8") for path in files]
