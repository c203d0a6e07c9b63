"""What the documents print is true: commands, their configs, targets, paths and links exist."""

import importlib.util
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from megalite.cli import find_command, load_config
from megalite.commands import COMMANDS
from megalite.errors import ConfigError
from megalite.tools.launch import options_of

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
IN_CHINESE = [(ROOT / "README.md", ROOT / "README.zh.md")] + [
    (ROOT / "docs" / page.name, page) for page in sorted((ROOT / "docs/zh").glob("*.md"))
]
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))
BLOCK = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
IN_ENGLISH_ALONE = {  # for who works on the code
    "adding-a-model.md",
    "design.md",
    "gpu.md",
    "kernel-resources.md",
    "kernels.md",
    "simt.md",
}
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
OWN_FOLDERS = ("megalite/", "csrc/", "tests/", "benchmarks/", "configs/", "docs/", "requirements/")


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def command_lines(document: Path) -> Iterator[list[str]]:
    """The words of each command in a document's shell blocks, without comments and prompts."""
    for block in BLOCK.findall(document.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s(?:&&|\|)\s", line.removeprefix("$ ")):
                if words := shlex.split(part, comments=True):
                    yield words


def megalite_words(words: list[str]) -> list[str] | None:
    """The words behind ``megalite`` or ``... -m megalite``; None for another program."""
    if Path(words[0]).name == "megalite":
        return words[1:]
    for place in range(len(words) - 1):
        if words[place : place + 2] == ["-m", "megalite"]:
            return words[place + 2 :]
    return None


def complaint(words: list[str]) -> str | None:
    """What is wrong with a command, if something is."""
    ours = megalite_words(words)
    if ours is not None:
        return megalite_complaint(ours)
    program = Path(words[0]).name
    if program == "make":
        return make_complaint(words[1:])
    if words[1:2] == ["-m"] and words[2].split(".")[0] in ("benchmarks", "tests"):
        return None if importlib.util.find_spec(words[2]) else f"no module {words[2]}"
    if words[1:3] == ["-m", "pytest"] or program == "pytest":
        missing = [word for word in words if word.startswith(OWN_FOLDERS) and not exists(word)]
        return f"no {missing}" if missing else None
    return None


def megalite_complaint(words: list[str]) -> str | None:
    words = words[1:] if words[:1] == ["config"] else words
    if not words or words[0] in ("--help", "--version"):
        return None
    try:
        words = options_of(words[1:]).training_script_args if words[0] == "launch" else words
        command, rest = find_command(words)
        if "--help" not in rest:
            load_config(command, rest)
    except ConfigError as error:
        return str(error)
    return None


def command_complaint(words: list[str]) -> str | None:
    """Whether there is such a command, whatever its arguments."""
    if words[0] == "launch":
        return None
    try:
        find_command(words[1:] if words[0] == "config" and words[1:] else words)
    except ConfigError as error:
        return str(error)
    return None


def make_complaint(words: list[str]) -> str | None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    wrong = [word for word in words if "=" not in word and word not in targets]
    return f"no target {wrong}" if wrong else None


def exists(path: str) -> bool:
    return any(ROOT.glob(path.split("::")[0].rstrip("/")))


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_commands_in_documents_exist_and_their_configs_load(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong = [
        f"{shlex.join(words)}: {said}"
        for words in command_lines(document)
        if (said := complaint(words))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_commands_inside_sentences_exist(document):
    wrong = []
    for span in SPAN.findall(document.read_text(encoding="utf-8")):
        words = span.split()
        if len(words) > 1 and words[0] in ("megalite", "make") and words[1][0].islower():
            said = make_complaint(words[1:]) if words[0] == "make" else command_complaint(words[1:])
            wrong += [f"{span}: {said}"] if said else []
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_paths_and_links_in_documents_exist(document):
    text = document.read_text(encoding="utf-8")
    wrong = []
    for span in SPAN.findall(text):
        path = span.split()[0] if span.split() else ""
        if path.startswith(OWN_FOLDERS) and not re.search(r"[<>{}$]|\.\.\.", path):
            wrong += [] if exists(path) else [span]
    for link in LINK.findall(text):
        if "://" not in link and not (document.parent / link).exists():
            wrong.append(link)
    assert not wrong, "\n".join(wrong)


def anchors(document: Path) -> set[str]:
    """What a link behind ``#`` may say: the headings, as GitHub and the site spell them."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    bare = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[\s-]+", "-", heading) for heading in bare}


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_links_to_headings_name_one(document):
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)#\s]*\.md)?#([^)\s]+)\)", text)
    wrong = [
        f"{page}#{anchor}"
        for page, anchor in links
        if anchor not in anchors(document.parent / page if page else document)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_no_page_holds_both_sides_of_a_merge(document):
    lines = document.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(("<<<<<<<", ">>>>>>>"))] == []


def test_every_page_stands_in_the_sites_contents():
    """mkdocs.yml names each page of docs/ once; ``make docs`` checks the links between them."""
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    groups = [
        next(iter(item.values())) if isinstance(item, dict) else [item]
        for item in yaml.safe_load(contents)
    ]
    named = sorted(page for group in groups for page in group)
    docs = ROOT / "docs"
    assert named == sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))


@pytest.mark.parametrize("command", COMMANDS, ids=[command.words for command in COMMANDS])
def test_examples_in_the_help_load(command):
    load_config(command, shlex.split(command.example))


def test_makefile_targets_are_those_that_its_help_names():
    text = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())
    helped = set(re.findall(r'echo "make ([a-z-]+)', text))
    assert helped == phony - {"help"}


@pytest.mark.parametrize("path", CONFIGS, ids=names(CONFIGS))
def test_configs_load_as_the_config_of_a_command(path):
    """A command whose name is in the file's; of any command where there is none."""
    named = [c for c in COMMANDS if set(c.words.split()) & set(re.split(r"[-_.]", path.stem))]
    said = []
    for command in named or COMMANDS:
        try:
            load_config(command, [str(path)])
            return
        except ConfigError as error:
            said.append(str(error))
    pytest.fail("\n".join(said))


def without_comments(block: str) -> str:
    return re.sub(r"(^|\s)# .*", "", block)


def english_page(path: Path) -> str:
    """Where a page stands, or the English one that it is the Chinese one of."""
    path = path.resolve()
    chinese = {there.resolve(): here for here, there in IN_CHINESE}
    return str(chinese.get(path, path).relative_to(ROOT))


def skeleton(page: Path) -> dict[str, list[str]]:
    """What a page and its translation have in common, each kind in the order that is its own."""
    text = page.read_text(encoding="utf-8")
    prose = FENCE.sub("", text)
    links = set(LINK.findall(prose)) - {
        re.search(r"^\[(?:中文|English)\]\((.*)\)$", prose, re.M)[1]
    }
    return {
        "headings": re.findall(r"^#+(?= )", prose, re.MULTILINE),
        "blocks of code": [without_comments(block) for block in FENCE.findall(text)],
        "words of code": sorted(set(SPAN.findall(prose))),
        "rows of tables": re.findall(r"^\|", prose, re.MULTILINE),
        "links": sorted(x if "://" in x else english_page(page.parent / x) for x in links),
        "figures": sorted(set(re.findall(r"\d+(?:[.,]\d+)*", SPAN.sub("", prose)))),
    }


@pytest.mark.parametrize(("english", "chinese"), IN_CHINESE, ids=[p[1].stem for p in IN_CHINESE])
def test_a_page_and_its_chinese_one_say_the_same(english, chinese):
    """Code, headings, tables, links and figures; a change of one of the pages is one of both."""
    here, there = skeleton(english), skeleton(chinese)
    wrong = []
    for what, ours in here.items():
        missing = [x for x in ours if ours.count(x) > there[what].count(x)]
        more = [x for x in there[what] if there[what].count(x) > ours.count(x)]
        if missing or (more and what != "figures"):
            wrong.append(f"{what}: missing {missing[:5]}, more {more[:5]}")
        elif what == "blocks of code" and ours != there[what]:
            wrong.append(f"{what}: in another order")
    assert not wrong, f"{chinese.relative_to(ROOT)} beside {english.name}:\n" + "\n".join(wrong)


def test_every_guide_has_a_chinese_page():
    guides = {path.name for path in (ROOT / "docs").glob("*.md")} - IN_ENGLISH_ALONE
    assert guides == {path.name for path in (ROOT / "docs/zh").glob("*.md")}


def test_chinese_pages_link_to_chinese_pages_and_each_page_to_its_other():
    wrong = []
    for english, chinese in IN_CHINESE:
        links = LINK.findall(FENCE.sub("", chinese.read_text(encoding="utf-8")))
        other = [link for link in links if (chinese.parent / link).resolve() == english]
        translated = {path for path, _ in IN_CHINESE} - {english}
        wrong += [
            f"{chinese.name}: {x}" for x in links if (chinese.parent / x).resolve() in translated
        ]
        back = f"[中文]({chinese.relative_to(english.parent)})"
        wrong += [] if len(other) == 1 else [f"{chinese.name}: no link to {english.name}"]
        wrong += (
            [] if back in english.read_text(encoding="utf-8") else [f"{english.name}: no {back}"]
        )
    assert not wrong, "\n".join(wrong)


def test_tracked_files_are_small():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    large = [str(path) for path in paths if path.exists() and path.stat().st_size > 500_000]
    assert not large, large


def test_the_table_of_operators_is_the_schema():
    """Every operator is there, rope_ beside rope, and nothing else."""
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    table = text.partition("| op | arguments")[2].partition("\n\n")[0]
    told = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) | {"rope_"}
    assert "`rope_`" in table
    schema = (ROOT / "csrc/schema.h").read_text(encoding="utf-8")
    assert told == set(re.findall(r'"(\w+)\(Tensor', schema))
