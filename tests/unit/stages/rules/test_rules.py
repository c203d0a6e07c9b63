"""Reward functions: the ready ones, users' own in worker processes, and every way they can fail."""

import os
import signal
import subprocess
import sys
import time

import pytest

from megalite.config import load
from megalite.data.chat.datasets import Question
from megalite.distributed.mesh import Mesh
from megalite.distributed.processes import is_alive, start_time
from megalite.errors import ConfigError, DataError
from megalite.stages.rules.config import ScoreConfig
from megalite.stages.rules.scores import Rules

OWN = """
import os, re, time
def length(prompt, answer, row):
    print("what is printed goes nowhere that is read")
    return len(answer)
def whole(prompt, answer, row):
    return prompt == row["q"] == "red?" and answer == "cat"
def process(prompt, answer, row):
    return os.getpid()
def raises(prompt, answer, row):
    raise ValueError("first\\nsecond")
def lacks(prompt, answer, row):
    return row["colour"]
def nan(prompt, answer, row):
    return float("nan")
def text(prompt, answer, row):
    return "1"
def nothing(prompt, answer, row):
    pass
def hangs(prompt, answer, row):
    re.match(r"(a+)+$", "a" * 40 + "b")
def dies(prompt, answer, row):
    os._exit(7)
def leaves(prompt, answer, row):
    raise SystemExit(3)
def two(prompt, answer):
    return 0
def huge(prompt, answer, row):
    return 1e39
def forks(prompt, answer, row):
    return 10.0 * (os.fork() == 0) + len(answer)
"""
ANSWERS = ["cat", "dog", "a cat", ""]


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def questions(*rows: dict) -> list[Question]:
    return [Question([1], text="red?", where=f"rows.jsonl:{n}", row=r) for n, r in enumerate(rows)]


def rules(*functions, decode=lambda answer: ANSWERS[answer[0]], **more) -> Rules:
    return Rules(ScoreConfig(function=functions, **more), decode)


def scores(*functions, rows=None, answers=ANSWERS, **more) -> list[list[float]]:
    """Scores of some answers to one row each, the first row's again where there are fewer."""
    asked = [(rows or [{"q": "red?"}])[0]] * len(answers) if len(rows or []) < 2 else rows
    decode = lambda answer: answers[answer[0]]  # noqa: E731
    with rules(*functions, decode=decode, **more) as made:
        return made.score(questions(*asked), [[n] for n in range(len(answers))], Mesh.single())


def test_functions_of_a_file_get_prompt_answer_and_row(own):
    found = scores(f"{own}:length", f"{own}:whole", workers=2)
    assert found == [[3, 3, 5, 0], [1, 0, 0, 0]]


def test_a_fork_that_comes_back_doesnt_reply(own):
    assert scores(f"{own}:forks") == [[3, 3, 5, 0]]


def test_a_file_of_a_package_imports_what_is_beside_it(tmp_path):
    folder = tmp_path / "package_of_rewards" / "by_length"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    (folder.parent / "sizes.py").write_text("def size(answer):\n    return len(answer)\n")
    text = "from ..sizes import size\ndef f(prompt, answer, row):\n    return size(answer)\n"
    (folder / "own.py").write_text(text)
    assert scores(f"{folder}/own.py:f") == [[3, 3, 5, 0]]


def test_calls_are_shared_by_processes_that_end_with_the_block(own):
    with rules(f"{own}:process", workers=2) as made:
        (found,) = made.score(questions(*[{}] * 8), [[0]] * 8, Mesh.single())
    assert 1 <= len(set(found)) <= 2
    assert os.getpid() not in found
    for process in found:
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)


def test_a_process_that_was_killed_between_two_calls_is_started_anew(own, capfd):
    with rules(f"{own}:process") as made:
        ask = lambda: made.score(questions({}), [[0]], Mesh.single())[0][0]  # noqa: E731
        first = ask()
        os.kill(int(first), signal.SIGKILL)
        wait_until_dead(int(first))
        assert ask() not in (first, os.getpid())
    said = capfd.readouterr().err
    assert "ended with exit code -9 while it had no call" in said
    assert len(said.splitlines()) == 1


def wait_until_dead(pid: int) -> None:
    """Until it is a zombie, which its parent has yet to see."""
    while is_alive(pid, start_time(pid)):
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises", "raised ValueError: first second in line "),
        ("lacks", "raised KeyError: 'colour' in line "),
        ("nan", "gave nan, which is not a finite number"),
        ("huge", "gave 1e+39, which is not a finite number of fp32"),
        ("text", "gave '1', which is not a number"),
        ("nothing", "gave None, which is not a number"),
        ("dies", "ended its process with exit code 7"),
        ("leaves", "raised SystemExit: 3"),
    ],
)
def test_a_fault_names_file_function_and_row_in_one_line(own, name, says):
    with pytest.raises(DataError) as caught:
        scores(f"{own}:{name}")
    said = str(caught.value)
    assert said.startswith(f"{own}:{name}: {says}")
    assert "for the answer 'cat' to rows.jsonl:0" in said
    assert "\n" not in said


def test_a_function_that_hangs_where_python_cant_stop_it_is_ended(own):
    """Without the limit it ends in some days."""
    with pytest.raises(DataError, match="hangs: gave nothing within 0.3 s, .*rows.jsonl:0"):
        scores(f"{own}:hangs", time_limit_s=0.3)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("own.py:missing", "there is no such function; the file has length, whole"),
        ("own.py:two", "must take \\(prompt, answer, row\\), takes \\(prompt, answer\\)"),
        ("own.py:os", "there is no such function"),
        ("none.py:length", "no such file"),
        ("broken.py:f", "raised SyntaxError: .* in line 2"),
        ("imports.py:f", "raised ModuleNotFoundError: No module named 'nowhere' in line 1"),
    ],
)
def test_what_cant_be_loaded_is_refused_by_name(own, tmp_path, name, says):
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "imports.py").write_text("import nowhere\n")
    with (
        rules(f"{tmp_path}/{name}") as made,
        pytest.raises(ConfigError, match=f"--reward.function {tmp_path}/{name}: {says}"),
    ):
        made.check(questions({}))


def test_every_set_of_keys_is_tried_before_the_start(own):
    """One row of each: a key that only some rows lack is found, with its row."""
    with rules(f"{own}:lacks") as made, pytest.raises(DataError, match="'colour'.*rows.jsonl:2"):
        made.check(questions({"colour": 1}, {"colour": 2}, {"q": "x"}))


@pytest.mark.parametrize(
    ("function", "row", "says"),
    [
        ("exact_match", {"target": "x"}, "has no 'answer', there is 'target'; reward.rules.column"),
        ("exact_match", {"answer": None}, "has no 'answer'"),
        ("exact_match", {"answer": {"a": 1}}, "must be text, a number or a list of them"),
        ("numeric_answer", {"answer": "none"}, "'answer' must have a number, came 'none'"),
        ("python_tests", {"answer": "x"}, "has no 'tests', there is 'answer'; reward.rules.tests"),
        ("python_tests", {"tests": 3}, "'tests' must be Python code, or a list of it, came int"),
        ("python_tests", {"tests": [3]}, "'tests' must be Python code, or a list of it, came list"),
    ],
)
def test_a_row_that_lacks_what_a_ready_function_reads_is_named(function, row, says):
    good = {"answer": "1", "tests": "1"}
    with rules(function) as made, pytest.raises(DataError, match=f"rows.jsonl:1: .*{says}"):
        made.check(questions(good, row))


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("so it is 42.", "42", 1),
        ("1,000 or 2,500", "#### 2500", 1),
        ("x = -3", -3, 1),
        ("7-3", 3, 1),
        (".5", "0.50", 1),
        ("1e3", 1000, 1),
        ("x = \u22125", "-5", 1),
        ("5", "\u22125", 0),
        ("7\u22123", 3, 1),
        ("1000001", "1000002", 0),
        ("so 1/4", "3/4", 0),
        ("x = -3 / 4.", -0.75, 1),
        ("$\\dfrac{3}{4}$", "0.75", 1),
        ("16/2", 2, 0),
        ("1/0", 0, 1),
        ("0.3333333", "0.33333333", 1),
        ("41", "42", 0),
        ("none", "42", 0),
        ("5", ["4", "5"], 1),
    ],
)
def test_the_last_number_of_an_answer_counts(answer, right, score):
    assert scores("numeric_answer", rows=[{"answer": right}], answers=[answer]) == [[score]]


def test_the_other_ready_functions():
    rows = [{"right": " cat "}]
    assert scores("exact_match", rows=rows, rules=dict(column="right")) == [[1, 0, 0, 0]]
    assert scores("exact_match", rows=[{"answer": 42.0}], answers=["42", "42.0", "4"]) == [
        [1, 1, 0]
    ]
    assert scores("regular_expression", rules=dict(pattern="^[cd]")) == [[1, 1, 0, 0]]
    assert scores("length", rules=dict(length=4)) == [[0.75, 0.75, 0.75, 0]]


CODE = {
    "def f(x): return x * 2": 1,
    "So:\n```python\ndef f(x):\n    return 2 * x\n```\ndone": 1,
    "In a shell:\n```bash\npip list\n```\nThen\n```python\ndef f(x): return 2 * x\n```": 1,
    "1. So:\n   ```Python3 title=f\r\n   def f(x):\r\n       return 2 * x\r\n   ```\nIs it?": 1,
    "So: ```python\ndef f(x): return 2 * x```\nas ``` says.": 1,
    "~~~{python}\ndef f(x):\n    '''\n    ```\n    '''\n    return 2 * x": 1,
    "import io, sys\nprint(1, end='')\nsys.stdout = io.StringIO()\ndef f(x): return 2 * x": 1,
    "```python\ndef f(x): return 2 * x\n``` So it doubles.": 1,
    "```python\ndef f(x): return 2 * x\n```\nOutput of f(1):\n```\nit is 2\n```": 1,
    "# ~~~~~~~~\ndef f(x): return 2 * x\n# ~~~~~~~~\nf(1)": 1,
    "def f(x): return 5": 0,
    "def f(x) return": 0,
    "import sys; sys.exit(0)": 0,
    "x = bytearray(2**30)\ndef f(x): return 2 * x": 0,
    "print('x' * 2**22)\ndef f(x): return 2 * x": 0,
}
TESTS = [{"tests": "assert f(2) == 4\nassert f(0) == 0"}]


def test_python_tests_run_in_a_process_with_limits():
    limits = {"tests_s": 60.0, "tests_mib": 512}
    more = {"rules": limits, "time_limit_s": 100.0}
    found = scores("python_tests", rows=TESTS, answers=list(CODE), **more)
    assert found == [list(CODE.values())]


LIMITED = """
import resource
from megalite.stages.rules.python_tests import TestLimits, passes_tests
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
print(passes_tests("x = 1", "assert x == 1", TestLimits(60.0, 512)))
"""


def test_python_tests_run_where_less_is_allowed_than_their_limits():
    found = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert found.stdout == "True\n", found.stderr


def test_tests_may_be_a_list():
    rows = [{"tests": ["assert f(2) == 4", "assert f(0) == 0"]}]
    answers = ["def f(x): return x * 2", "def f(x): return 4"]
    assert scores("python_tests", rows=rows, answers=answers) == [[1, 0]]


def test_code_that_doesnt_end_fails_its_tests():
    assert scores(
        "python_tests", rows=TESTS, answers=["while True: pass"], rules={"tests_s": 0.3}
    ) == [[0]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--function", "reward.py"], 'must be "file.py:name", or one of exact_match'),
        (["--function", '["length"]'], "--reward.rules.length: must be above 0"),
        (["--function", "regular_expression"], "--reward.rules.pattern: must be set"),
        (
            ["--function", "regular_expression", "--rules.pattern", "("],
            "is no regular expression: missing",
        ),
        (["--function", '["exact_match", "exact_match"]'], "names a function twice"),
        (["--function", "exact_match", "--weights", "[1.0, 2.0]"], "must have 1 numbers"),
        (["--function", "python_tests", "--rules.tests_s", "10.0"], "must be less than"),
    ],
)
def test_settings_that_cant_be_are_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        load(ScoreConfig, None, words)


def test_one_function_needs_no_list():
    assert load(ScoreConfig, None, ["--function", "exact_match"]).function == ("exact_match",)
    assert load(ScoreConfig, None, ["--function", ""]).function == ()
