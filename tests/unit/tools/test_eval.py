"""``megalite eval``: loss, perplexity and accuracy against a plain computation."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from megalite.cli import main
from megalite.data.corpus.store import StoreWriter
from tests.unit.tools.conftest import SIZE

RNG = np.random.default_rng(0)


def measure(folder, tmp_path, *words) -> dict[str, dict[str, float]]:
    output = tmp_path / "numbers.json"
    own = ["eval", "--model", folder, "--run.device", "cpu", "--output", output, *words]
    assert main([str(word) for word in own]) == 0
    return json.loads(output.read_text())


def refused(folder, capsys, *words) -> str:
    own = ["eval", "--model", folder, "--run.device", "cpu", *words]
    assert main([str(word) for word in own]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    return said


def expected(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    kept = labels >= 0
    log_probs = logits.double().log_softmax(-1)[kept]
    own = log_probs.gather(1, labels[kept][:, None])[:, 0]
    right = (log_probs.argmax(-1) == labels[kept]).double().mean()
    loss = -float(own.mean())
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "accuracy": float(right),
        "targets": float(kept.sum()),
    }


def write_store(path, documents: list[list[int]]):
    writer = StoreWriter(path, np.dtype(np.uint16))
    for document in documents:
        writer.add(np.array(document))
    writer.close()
    return path


def test_a_store_is_measured_as_transformers_would(causal, tmp_path):
    tokens = RNG.integers(2, SIZE, 9 * 7 + 1).tolist()
    store = write_store(tmp_path / "store", [tokens])
    words = ["--stores", f'["{store}"]', "--data.sequence_length", "9", "--batch_size", "4"]
    found = measure(causal, tmp_path, *words)
    rows = torch.tensor(tokens[:-1]).view(7, 9)
    labels = torch.tensor(tokens[1:]).view(7, 9)
    model = AutoModelForCausalLM.from_pretrained(causal, dtype=torch.float32)
    with torch.no_grad():
        assert found[str(store)] == pytest.approx(expected(model(rows).logits, labels), rel=1e-5)


@pytest.mark.parametrize("structure", ["causal", "encoder_decoder"])
def test_rows_are_measured_on_their_answers(structure, request, tmp_path):
    folder = request.getfixturevalue(structure)
    rows = [{"prompt": f"the {n} cat", "response": "red " * (n + 1)} for n in range(5)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--rows", f'["{file}"]', "--batch_size", "2", "--template", "raw"]
    (found,) = measure(folder, tmp_path, *words).values()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    losses, right = [], []
    kind = AutoModelForCausalLM if structure == "causal" else AutoModelForSeq2SeqLM
    model = kind.from_pretrained(folder, dtype=torch.float32)
    for row in rows:
        question = tokenizer(row["prompt"]).input_ids
        answer = tokenizer(row["response"]).input_ids + [tokenizer.eos_token_id]
        with torch.no_grad():
            if structure == "causal":
                ids = torch.tensor([question + answer])
                logits = model(ids).logits[:, len(question) - 1 : -1]
            else:
                source = torch.tensor([[*question, tokenizer.eos_token_id]])
                logits = model(source, labels=torch.tensor([answer])).logits
        log_probs = logits[0].double().log_softmax(-1)
        losses += (-log_probs.gather(1, torch.tensor(answer)[:, None])[:, 0]).tolist()
        right += (log_probs.argmax(-1) == torch.tensor(answer)).tolist()
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["accuracy"] == pytest.approx(np.mean(right))
    assert found["targets"] == len(losses)


def test_a_reward_model_ranks_rows(causal, tmp_path, capsys):
    file = tmp_path / "rankings.jsonl"
    rows = [{"prompt": f"the {n}", "chosen": "cat", "rejected": "dog " * n} for n in range(1, 6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["rm", "--checkpoint.start", causal, "--data.train", f'["{file}"]', "--data.heldout"]
    words += [f'["{file}"]', "--train.evaluate_every", "1", "--train.steps", "1"]
    words += ["--train.global_batch_size", "2", "--train.micro_batch_size", "2", "--run.device"]
    words += ["cpu", "--run.folder", tmp_path / "rm", "--run.trackers", "[]"]
    words += ["--data.sequence_length", "64"]
    assert main([str(word) for word in words]) == 0
    lines = (tmp_path / "rm" / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[-1])
    found = measure(tmp_path / "rm", tmp_path, "--rows", f'["{file}"]')[str(file)]
    assert found["accuracy"] == row["heldout_accuracy"]
    capsys.readouterr()
    assert "is a reward model" in refused(tmp_path / "rm", capsys, "--stores", '["x"]')


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--stores, --rows or --tasks: at least one"),
        (["--stores", '["nowhere"]'], "nowhere.idx: no such file"),
        (["--rows", '["nowhere.jsonl"]'], "nowhere.jsonl"),
        (["--data.train", '["x"]', "--rows", '["x"]'], "--data.train: is of a training run"),
        (["--stores", '["x"]', "--output", "no/where.json"], "there is no such folder"),
        (["--stores", '["x"]', "--output", "."], "--output .: is a folder"),
        (["--rows", '["x"]', "--limit", "3"], "--limit: is of tasks: give --tasks"),
        (["--tasks", '["x"]', "--task_folder", "no"], "--task_folder no: there is no such folder"),
    ],
)
def test_what_measures_nothing_is_refused_in_a_line(causal, words, says, capsys):
    assert says in refused(causal, capsys, *words)
