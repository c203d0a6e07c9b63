"""Rows under names of their own: what a run reads of them, and what it says."""

import json

from megalite.cli import main


def without_end(work, folder):
    """The tokenizer's bare file, its end under a name that tells nothing."""
    text = (work.folder / "tokenizer" / "tokenizer.json").read_text()
    path = folder / "bare.json"
    path.write_text(text.replace("<|endoftext|>", "<stop>"))
    return path


def test_a_run_reads_rows_by_their_own_names_and_says_what_it_leaves_out(work, tmp_path, capsys):
    rows = [{"question": f"red {n}", "answer": "cat", "score": n} for n in range(1, 5)]
    rows.append({"question": "red", "answer": "dog " * 99, "score": 0})
    path = tmp_path / "rows.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bare = without_end(work, tmp_path)
    words = ["sft", work.config(1), "--data.train", f'["{path}"]', "--data.sequence_length", "32"]
    words += ["--run.folder", tmp_path / "run", "--tokenizer.path", bare]
    words += ["--data.columns", '{ prompt = "question", response = "answer" }']
    words += ["--data.long_rows", "drop"]
    assert main([str(word) for word in words]) == 0
    said = (tmp_path / "run" / "log.txt").read_text()
    assert f"{bare}: has no end token that is known" in said
    assert f"{path}: keys that are not read, of 5 records: 'score' (5)" in said
    assert f"{path}: 1 of 5 records are longer than data.sequence_length 32" in said
    learned = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    words[words.index(tmp_path / "run")] = tmp_path / "ended"
    assert main([str(word) for word in [*words, "--tokenizer.end_token", "<stop>"]]) == 0
    assert "end token" not in (tmp_path / "ended" / "log.txt").read_text()
    ended = json.loads((tmp_path / "ended" / "metrics.jsonl").read_text().splitlines()[0])
    assert ended["tokens"] - learned["tokens"] == 4 * 4  # ends: four in each of the sequences


def test_names_the_wrong_way_round_are_refused(work, tmp_path, capsys):
    words = ["sft", work.config(1), "--data.train", '["rows.json"]', "--run.folder", tmp_path / "r"]
    words += ["--data.columns", '{ question = "prompt" }']
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr().err
    assert "--data.columns 'question': must be a name that is known here" in said
    assert "instruction" in said


def test_a_later_start_takes_the_tokens_of_an_earlier_one(work, tmp_path):
    words = ["sft", work.config(2), "--data.train", f'["{work.folder}/sft.jsonl"]']
    words += ["--tokenizer.path", work.folder / "tokenizer", "--data.sequence_length", "96"]
    losses, logs = [], []
    for number, cache in enumerate((tmp_path / "cache", tmp_path / "cache", "off")):
        folder = tmp_path / str(number)
        more = ["--data.cache", cache, "--run.folder", folder]
        assert main([str(word) for word in [*words, *more]]) == 0
        losses.append([json.loads(x)["loss"] for x in (folder / "metrics.jsonl").open()])
        logs.append((folder / "log.txt").read_text())
    assert losses[0] == losses[1] == losses[2]
    (store,) = (tmp_path / "cache").iterdir()
    assert f"sft.jsonl: 40 rows, tokenized once into {store}" in logs[0]
    assert f"sft.jsonl: 40 rows, tokenized before, from {store}" in logs[1]
    assert "tokenized" not in logs[2]
