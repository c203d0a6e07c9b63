"""docs/python.md and its notebook: their code runs as it stands and binds nothing."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import megalite
from tests.e2e.conftest import ROOT, environment
from tests.unit.tools.conftest import causal  # noqa: F401 - a fixture

PAGE, NOTEBOOK = ROOT / "docs" / "python.md", ROOT / "docs" / "python.ipynb"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def state() -> dict[str, object]:
    """What a call could leave bound to the process."""
    return {
        "handlers": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "folder": os.getcwd(),
        "has_group": torch.distributed.is_initialized(),
        "gradients": torch.is_grad_enabled(),
        "hook": sys.excepthook,
        "environment": dict(os.environ) | {"PYTEST_CURRENT_TEST": ""},
    }


def test_the_page_runs_and_the_process_is_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    before = state()
    for number, block in enumerate(BLOCK.findall(PAGE.read_text(encoding="utf-8")), 1):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
        assert state() == before, number


def test_the_notebook_has_the_pages_code():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code == [block.rstrip("\n") for block in BLOCK.findall(PAGE.read_text(encoding="utf-8"))]


def test_names_come_when_they_are_used():
    code = (
        "import sys, megalite; heavy = {'torch', 'numpy', 'pydantic', 'transformers'};"
        "print(*heavy & set(sys.modules)); megalite.RowIntervals; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment()
    )
    assert done.stdout.split() == ["True"]
    assert set(megalite.__all__) <= set(dir(megalite))
    assert all(getattr(megalite, name) is not None for name in megalite.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = megalite.nonsense
    stub = (Path(megalite.__file__).parent / "__init__.pyi").read_text()
    assert set(re.findall(r"import \w+ as (\w+)", stub)) == set(megalite.__all__)


def test_a_failed_call_leaves_nothing_and_names_the_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = state()
    with pytest.raises(megalite.MegaliteError, match="train: stage 'sftt': must be one of"):
        megalite.train("sftt")
    with pytest.raises(megalite.MegaliteError, match="no such tokenizer"):
        megalite.train("sft", data={"train": [tmp_path / "rows.jsonl"]}, run={"device": "cpu"})
    with pytest.raises(megalite.MegaliteError, match="there is no such folder"):
        megalite.load_model(tmp_path / "nowhere")
    assert state() == before


def test_a_model_in_sixteen_bits_answers_as_the_command(causal, capsys):  # noqa: F811
    options = {"max_new_tokens": 6, "temperature": 0}
    model = megalite.load_model(causal, device="cpu", precision="bf16", template="raw")
    assert {p.dtype for part in model.model.parts for p in part.parameters()} == {torch.bfloat16}
    from megalite.cli import main

    words = ["generate", "--model", str(causal), "--prompt", '["the cat"]', "--run.device", "cpu"]
    words += ["--precision", "bf16", "--sampling.max_new_tokens", "6"]
    assert main([*words, "--sampling.temperature", "0"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == megalite.generate(model, "the cat", **options)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (None, "a prompt must be a text or a list of messages, came None"),
        (["the", 3], "came 3"),
        (b"the", "came b'the'"),
        ([{"role": "user", "content": None}], "role and content must be texts, came None"),
        ("the \ud83d", "character 4 is half of a surrogate pair"),
        ("the cat " * 40, "the model has 96: shorten it"),
        ("", "has no tokens"),
    ],
)
def test_a_prompt_that_can_not_be_answered_is_refused(causal, asked, says):  # noqa: F811
    model = megalite.load_model(causal, device="cpu", template="raw")
    with pytest.raises(megalite.MegaliteError, match=says):
        megalite.generate(model, asked, max_new_tokens=4)
