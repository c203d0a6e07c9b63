"""lm-evaluation-harness asks our models and transformers' the same, and has the same numbers."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from megalite.cli import main
from tests.unit.tools.conftest import causal, encoder_decoder  # noqa: F401 - fixtures

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: {kind}
{rest}
"""
TASKS = {
    "own_choice": (
        "multiple_choice",
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{answer}}"\n'
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n",
    ),
    "own_text": (
        "loglikelihood_rolling",
        'doc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list:\n  - metric: word_perplexity\n  - metric: byte_perplexity\n",
    ),
    "own_answer": (
        "generate_until",
        'doc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
        'generation_kwargs:\n  until: ["zz"]\n  max_gen_toks: 7\n  do_sample: false\n'
        "metric_list:\n  - metric: exact_match\n",
    ),
}
QUESTIONS = ["the red cat", "who sees the cat", "red", "a cat and a red cat and the cat", "of "]
CHOICES = [["red", " cat", "x y z"], ["one", "two words"], ["c", "the", "red red", "a"]]
TEXTS = ["the red cat sees the cat. " * n for n in (1, 3, 9)]  # the longest takes two windows


@pytest.fixture(params=["causal", "encoder_decoder"])
def pair(request):
    """A folder, and transformers' own model of it behind the harness's adaptor."""
    folder = request.getfixturevalue(request.param)
    is_pair = request.param == "encoder_decoder"
    kind = AutoModelForSeq2SeqLM if is_pair else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"tokenizer": tokenizer, "device": "cpu", "max_length": 96}
    backend = "seq2seq" if is_pair else "causal"
    # the harness lets a seq2seq model write as many tokens more as its padded batch has rows
    return folder, HFLM(model, batch_size=1 if is_pair else 3, backend=backend, **options)


def write_tasks(place: Path, answers: list[str]) -> None:
    """The tasks with their rows; every second target is the model's own answer."""
    rows = {
        "own_choice": [
            {"question": q, "choices": CHOICES[n % 3], "answer": n % 2}
            for n, q in enumerate(QUESTIONS)
        ],
        "own_text": [{"text": text} for text in TEXTS],
        "own_answer": [
            {"question": q, "answer": answer if n % 2 else "no"}
            for n, (q, answer) in enumerate(zip(QUESTIONS, answers, strict=True))
        ],
    }
    for name, (kind, rest) in TASKS.items():
        file = place / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        text = TASK.format(name=name, file=file, kind=kind, rest=rest)
        (place / f"{name}.yaml").write_text(text)


def test_numbers_of_three_kinds_of_tasks_are_transformers_own(pair, tmp_path, monkeypatch):
    folder, theirs = pair
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    told = {"until": ["zz"], "max_gen_toks": 7, "do_sample": False}
    asked = [Instance("generate_until", {}, (q, told), n) for n, q in enumerate(QUESTIONS)]
    answers = theirs.generate_until(asked, disable_tqdm=True)
    assert any(answers)
    write_tasks(tmp_path, answers)
    output = tmp_path / "numbers.json"
    words = ["eval", "--model", folder, "--tasks", json.dumps(list(TASKS)), "--run.device", "cpu"]
    words += ["--task_folder", tmp_path, "--batch_size", "2", "--output", output]
    assert main([str(word) for word in words]) == 0
    ours = json.loads(output.read_text())
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(
        theirs, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, log_samples=False
    )
    for name, told in found["results"].items():
        for key, value in told.items():
            if isinstance(value, float):
                assert ours[name][key.removesuffix(",none")] == pytest.approx(value, rel=1e-5), key
    assert {"acc", "acc_norm"} <= set(ours["own_choice"])
    assert {"word_perplexity", "byte_perplexity"} <= set(ours["own_text"])
    assert 0 < ours["own_answer"]["exact_match"] < 1
