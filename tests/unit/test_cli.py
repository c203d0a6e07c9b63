"""The command line: help that imports nothing heavy, commented configs, exit codes."""

import io
import os
import shlex
import subprocess
import sys

import pytest

from megalite.cli import find_command, load_config, main
from megalite.commands import COMMANDS
from megalite.config.load import tomllib

HEAVY = ("torch", "numpy", "pydantic", "transformers", "tokenizers", "rich", "pyarrow")
NAMES = [command.words for command in COMMANDS]


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["pretrain", "--help"], ["nonsense"]])
def test_answers_without_a_run_import_nothing_heavy(words):
    """What is imported decides how long --help takes; it is half a second at most."""
    code = (
        "import sys; from megalite.cli import main; code = main(sys.argv[1:]); "
        f"found = [name for name in {HEAVY!r} if name in sys.modules]; "
        "print(code, found, len(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    code, found, count = done.stdout.splitlines()[-1].rsplit(" ", 2)
    assert found == "[]"
    assert int(count) < 200
    assert code == ("2" if words == ["nonsense"] else "0")


def test_tokenizers_and_stores_are_made_without_torch(tmp_path):
    """Importing it takes as long as tokenizing some 10 MiB."""
    (tmp_path / "text.txt").write_text("a text of a few words\n" * 20)
    code = (
        "import sys; from megalite.cli import main; "
        "source = ['--source', '[\"text.txt\"]']; "
        "made = main(['tokenizer', 'train', *source, '--vocab_size', '260']); "
        "done = main(['data', 'prepare', *source, '--output', 'out', '--processes', '1']); "
        "print(made, done, 'torch' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines()[-1] == "0 0 False"


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in NAMES)
    assert main([]) == 2


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("name", ["", "launch", "config", *NAMES])
def test_help_is_as_wide_as_the_terminal_and_its_examples_run(name, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*name.split(), "--help"]) == 0
    whole = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([*name.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= width
    joined = said.replace("\\\n", "")
    assert joined.split() == whole.split()
    examples = [line for line in whole.splitlines() if line.startswith("  megalite ")]
    spoken = [shlex.split(line) for line in joined.splitlines() if line.startswith("  megalite ")]
    assert spoken == [shlex.split(line) for line in examples]


def test_an_unknown_command_is_told_all_that_there_are(capsys):
    assert main(["nonsense"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in [*NAMES, "config", "launch"])
    assert main(["confg"]) == 2
    assert capsys.readouterr().err.endswith("no such command; did you mean config?\n")
    assert main(["config", "launch"]) == 2
    assert "megalite config launch: it has no keys" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_and_a_commented_config(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    assert f"megalite config {name}" in capsys.readouterr().out
    assert main(["config", *name.split()]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"# megalite {name}\n")
    tomllib.loads(said)
    keys = [line for line in said.splitlines() if " = " in line and not line.startswith("#")]
    lines = said.splitlines()
    for key in keys:
        assert lines[lines.index(key) - 1].startswith("#"), f"{key} has no description"


@pytest.mark.parametrize("name", ["pretrain", "sft", "rm", "ppo", "grpo", "dpo"])
def test_a_printed_config_is_the_config(name, tmp_path, capsys):
    overrides = ["--train.steps", "7", "--model.num_layers", "3", "--data.train", '["a b"]']
    assert main(["config", name, *overrides]) == 0
    path = tmp_path / "printed.toml"
    path.write_text(capsys.readouterr().out)
    command, _ = find_command([name])
    assert load_config(command, [str(path)])[0] == load_config(command, overrides)[0]


def test_config_shows_a_file_with_its_overrides(tmp_path, capsys):
    (tmp_path / "c.toml").write_text("[train]\nsteps = 5\n")
    assert main(["config", "sft", str(tmp_path / "c.toml"), "--run.seed", "9"]) == 0
    said = tomllib.loads(capsys.readouterr().out)
    assert (said["train"]["steps"], said["run"]["seed"]) == (5, 9)
    assert main(["config", "sft", str(tmp_path / "none.toml")]) == 2


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m megalite config ppo | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_closed_pipe_is_no_error_amid_a_long_text(monkeypatch):
    def writes(_words: list[str]) -> int:
        sys.stdout.write("x" * 100_000)
        return 1

    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr("megalite.cli._dispatch", writes)
    with open(writer, "w", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["plan"]) == 0


def test_standard_streams_may_be_closed():
    command = f"{sys.executable} -m megalite --version >&- 2>&- <&-"
    assert subprocess.run(["bash", "-c", command], check=False).returncode == 0


def test_letters_that_the_terminal_lacks_are_escaped(monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    assert main(["config", "report", "--runs", "læuft"]) == 0
    assert rb'runs = ["l\xe6uft"]' in output.buffer.getvalue()


def test_an_argument_that_is_not_utf_8_is_refused(capsys):
    assert main(["report", "--runs", os.fsdecode(b"l\xe6uft")]) == 2
    assert "must be text in UTF-8" in capsys.readouterr().err


def test_a_rank_that_is_no_number_is_said(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "x")
    assert main(["report", "--runs", "a"]) == 2
    assert "environment RANK='x': must be a number" in capsys.readouterr().err


def test_a_pipe_that_breaks_elsewhere_is_one(monkeypatch):
    """Exit code 0 would say that all is done."""

    def breaks(_words: list[str]) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("megalite.cli._dispatch", breaks)
    with pytest.raises(BrokenPipeError):
        main(["pretrain"])


def test_a_mistake_is_one_line_whatever_the_value_holds(capsys):
    assert main(["pretrain", "--model.preset", "a\nb\x1b[31m"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(r"megalite: --model.preset a\nb\x1b[31m: no such preset")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("pretrain", "--run.folder=", "--data.train=x"), "--run.folder: is empty"),
        (("data prepare", "--source=x", "--output="), "--output = '': must be a text that is not"),
        (("tokenizer train", "--source=x", "--output="), "--output = ''"),
        (("tokenizer train", "--source=[]"), "--source = []: must be a list of at least 1"),
        (("report", "--runs=x", "--output="), "--output = ''"),
        (("report", "--runs=[]"), "--runs = []: must be a list of at least 1"),
        (("demo", "--folder="), "--folder = ''"),
        (("demo", "--configs=no"), "--configs no: there is no such folder here: run it in a copy"),
    ],
)
def test_an_empty_name_where_something_is_written_is_refused(
    words, says, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main([*words[0].split(), *words[1:]]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_unreadable_file_is_named(tmp_path, capsys):
    assert main(["pretrain", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
