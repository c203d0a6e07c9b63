"""What a contributor meets is true: the workflow, the hooks and the templates."""

import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from setuptools.command.egg_info import FileList

try:
    import tomllib
except ImportError:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github/workflows/ci.yml"
HOOKS = ROOT / ".pre-commit-config.yaml"
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
FILES = [HOOKS, WORKFLOW, *FORMS]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_a_source_archive_has_what_make_and_the_tests_read(monkeypatch):
    """MANIFEST.in names it; pyproject.toml, setup.py and the package come by themselves."""
    monkeypatch.chdir(ROOT)
    manifest = FileList()
    for line in (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines():
        manifest.process_template_line(line)
    always = {"pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE"}
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout: there is no list of its files to compare")
    wanted = {n for n in listed.stdout.splitlines() if not n.startswith(("megalite/", ".ci/"))}
    assert wanted - set(manifest.files) - always == set()


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())


def commands(path: Path) -> Iterator[str]:
    """Each line that a workflow or a hook runs."""
    content = read(path)
    for job in content.get("jobs", {}).values():
        for step in job["steps"]:
            yield from step.get("run", "").splitlines()
    for source in content.get("repos", []):
        yield from (hook["entry"] for hook in source["hooks"])


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_yaml_parses(path):
    assert isinstance(read(path), dict)


@pytest.mark.parametrize("path", [WORKFLOW, HOOKS], ids=["workflow", "hooks"])
def test_what_is_run_is_a_make_target(path):
    words = [line.split() for line in commands(path)]
    assert words
    wrong = [line for line in words if line[0] != "make" or not set(line[1:]) <= make_targets()]
    assert not wrong


def test_the_workflow_checks_and_tests():
    assert {"make check", "make test"} <= set(commands(WORKFLOW))


def test_the_workflow_has_every_python_that_the_package_names():
    (job,) = read(WORKFLOW)["jobs"].values()
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert job["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_the_workflow_has_the_oldest_torch_that_the_package_takes():
    (job,) = read(WORKFLOW)["jobs"].values()
    (oldest,) = [d.removeprefix("torch") for d in PROJECT["dependencies"] if d.startswith("torch")]
    oldest = oldest.removeprefix(">=")
    assert job["strategy"]["matrix"]["torch"] == [f"=={oldest}.0", f">={oldest}"]
    assert f"PyTorch {oldest} is the oldest" in (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def test_hooks_need_no_network():
    for source in read(HOOKS)["repos"]:
        assert source["repo"] == "local"
        assert {hook["language"] for hook in source["hooks"]} == {"system"}


@pytest.mark.parametrize("path", FORMS, ids=[path.name for path in FORMS])
def test_issue_forms_are_forms(path):
    """What GitHub demands of a form: https://docs.github.com, syntax for issue forms."""
    form = read(path)
    assert form["name"]
    assert form["description"]
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert fields
    assert len({part["id"] for part in fields}) == len(fields)
    assert all(part["attributes"]["label"] for part in fields)


def test_the_license_is_the_one_that_the_package_names():
    assert PROJECT["license"] == "Apache-2.0"
    (name,) = PROJECT["license-files"]
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_changelog_has_a_place_for_what_comes():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text
    assert PROJECT["version"] in text


def test_make_test_collects_every_file_of_tests(request):
    passed_over = request.config.getini("norecursedirs")
    tests = (path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py"))
    folders = {part for path in tests for part in path.parts}
    assert not [part for part in folders for name in passed_over if fnmatch(part, name)]
