"""Wrong input is one line that says where, and exit code 2; nothing is written half."""

import json
import shutil

import pytest

from megalite.cli import main


def refused(capsys, words) -> str:
    """Run a command in this process; give the one line that it says."""
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1, said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--model.hiden_size", "3"], ["hiden_size", "hidden_size"]),
        (["--train.steps", "many"], ["train.steps", "many"]),
        (["--train.steps", "-1"], ["train.steps", "-1"]),
        (
            ["--train.global_batch_size", "3", "--train.micro_batch_size", "2"],
            ["global_batch_size"],
        ),
        (["--model.num_heads", "3"], ["num_heads", "hidden_size"]),
        (["--parallel.tp", "2"], ["parallel", "1, the number of processes"]),
        (["--data.train", '["nowhere"]'], ["nowhere"]),
        (["--data.weights", "[0.5, 0.5]"], ["data.weights"]),
        (["--checkpoint.start", "nowhere"], ["nowhere"]),
        (["--run.device", "tpu"], ["run.device", "tpu"]),
        (["--run.folder", "/proc/run"], ["run.folder", "/proc/run"]),
        (
            ["--run.folder", "/proc/version"],
            ["--run.folder /proc/version", "is a file: it must be a folder"],
        ),
        (["--optimizer.kind", "apex"], ["apex.optimizers.FusedAdam"]),
    ],
)
def test_a_wrong_value_names_its_key(work, capsys, more, says):
    run = work.new_run()
    said = refused(capsys, [*work.pretrain_words(run), *more])
    for part in says:
        assert part in said
    assert not (run / "checkpoints").exists()


def test_a_missing_config_file_is_named(capsys):
    assert "nothing.toml" in refused(capsys, ["pretrain", "nothing.toml"])


def test_a_malformed_config_file_names_the_line(capsys, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("[train]\nsteps = = 3\n")
    said = refused(capsys, ["pretrain", path])
    assert "bad.toml" in said
    assert "line 2" in said


ROWS = {
    "malformed": ('{"prompt": "a"}\n{"prompt": \n', ["rows.jsonl", "2"]),
    "empty": ("", ["rows.jsonl", "empty"]),
    "wrong keys": ('{"question": "a"}\n', ["rows.jsonl", "1", "'prompt' is missing"]),
    "no object": ("[1, 2]\n", ["rows.jsonl", "1"]),
    "wrong type": ('{"prompt": 3}\n', ["rows.jsonl", "1"]),
    "too long": ('{"prompt": "' + "red " * 300 + '"}\n', ["rows.jsonl", "sequence_length"]),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_wrong_row_of_prompts_is_named_by_file_and_line(work, whole, capsys, tmp_path, kind):
    text, says = ROWS[kind]
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    words = ["ppo", work.config(2), "--data.train", f'["{path}"]', "--data.sequence_length", "64"]
    words += ["--tokenizer.path", f"{work.folder}/tokenizer", "--run.folder", tmp_path / "run"]
    said = refused(capsys, [*words, "--reward_model", whole, "--checkpoint.start", whole])
    for part in says:
        assert part in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"text": "a"}\n{"text": 1}\n', "rows.jsonl:2"),
        ('{"text": "a"}\nnot json\n', "rows.jsonl:2"),
        ('{"body": "a"}\n', "rows.jsonl:1"),
        ("", "rows.jsonl"),
    ],
)
def test_a_wrong_row_of_text_leaves_no_store(work, capsys, tmp_path, text, says):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    words = ["data", "prepare", "--source", f'["{path}"]', "--output", tmp_path / "store"]
    said = refused(capsys, [*words, "--tokenizer", work.folder / "tokenizer", "--processes", "1"])
    assert says in said
    assert not (tmp_path / "store.idx").exists()


def test_skipping_counts_and_lists_what_was_left_out(work, capsys, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "red cat"}\nnot json\n{"text": "blue dog"}\n')
    words = ["data", "prepare", "--source", f'["{path}"]', "--output", tmp_path / "store"]
    words += ["--tokenizer", work.folder / "tokenizer", "--on_error", "skip", "--processes", "1"]
    assert main([str(word) for word in words]) == 0
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert "rows.jsonl:2" in said
    assert (tmp_path / "store.idx").exists()


STAGES = {  # a good row, one with the wrong keys, one of a wrong type, one that is too long
    "sft": (
        {"instruction": "red", "output": "cat"},
        {"instruction": "red"},
        {"messages": [{"role": "user", "content": 3}]},
        {"instruction": "red", "output": "cat " * 300},
    ),
    "rm": (
        {"prompt": "red", "answers": ["cat", "dog"]},
        {"prompt": "red", "chosen": "cat"},
        {"prompt": "red", "answers": "cat"},
        {"prompt": "red", "chosen": "cat " * 300, "rejected": "dog"},
    ),
    "dpo": (
        {"prompt": "red", "answers": ["cat", "dog"]},
        {"prompt": "red", "completion": "cat", "label": True},
        {"prompt": "red", "chosen": "cat", "rejected": 3},
        {"prompt": "red", "chosen": "cat " * 300, "rejected": "dog"},
    ),
    "ppo": (
        {"prompt": "red"},
        {"text": "red"},
        {"messages": ["red"]},
        {"prompt": "red " * 300},
    ),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["keys", "type", "long", "json", "surrogate", "empty", "missing"])
def test_a_wrong_row_of_any_stage_is_named_before_a_run_begins(
    work, whole, capsys, tmp_path, stage, kind
):
    good, keys, type_, long = (json.dumps(row) for row in STAGES[stage])
    bad = {"keys": keys, "type": type_, "long": long, "json": good[:-2]}
    bad |= {"surrogate": good.replace("red", "\\ud800")}
    path = tmp_path / "rows.jsonl"
    if kind != "missing":
        path.write_text("" if kind == "empty" else f"{good}\n\n{bad[kind]}\n{good}\n")
    words = [stage, work.config(2), "--data.train", f'["{path}"]', "--data.sequence_length", "64"]
    words += ["--tokenizer.path", f"{work.folder}/tokenizer", "--run.folder", tmp_path / "run"]
    words += ["--checkpoint.start", whole] + (["--reward_model", whole] if stage == "ppo" else [])
    said = refused(capsys, words)
    assert f"{path}:3: " in said if kind in bad else str(path) in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--model.vocab_size", "100"], ["a store holds token", "--model.vocab_size is 100"]),
        (
            ["--model.position", "learned", "--data.sequence_length", "200"],
            ["--data.sequence_length 200: needs 200 positions, model.max_positions is 128"],
        ),
        (
            ["--model.position", "learned", "--samples.prompts", '["{prompts}"]']
            + ["--samples.max_new_tokens", "127"],
            ["--samples.prompts: prompt 1", "model.max_positions is 128"],
        ),
        (["--samples.prompts", '["nowhere.jsonl"]'], ["nowhere.jsonl"]),
        (["--data.sequence_length", "9999999"], ["sequence_length 9999999"]),
        (["--tokenizer.path", "nowhere", "--samples.prompts", '["{prompts}"]'], ["nowhere"]),
    ],
)
def test_what_would_be_met_late_is_refused_early(work, capsys, more, says):
    run = work.new_run()
    more = [word.replace("{prompts}", f"{work.folder}/prompts.jsonl") for word in more]
    said = refused(capsys, [*work.pretrain_words(run), *more])
    for part in says:
        assert part in said
    assert not (run / "checkpoints").exists()


@pytest.fixture(scope="module")
def learned(work):
    """What PPO starts from: models with a table of 128 positions."""
    start, reward = work.new_run(), work.new_run()
    table = ["--model.position", "learned"]
    assert main([str(word) for word in work.pretrain_words(start, *table, steps=1)]) == 0
    words = ["rm", work.config(1), "--data.train", f'["{work.folder}/rankings.jsonl"]', *table]
    words += ["--tokenizer.path", f"{work.folder}/tokenizer", "--run.folder", reward]
    words += ["--data.sequence_length", "64", "--checkpoint.start", start]
    assert main([str(word) for word in words]) == 0
    return ["--checkpoint.start", start, "--reward_model", reward, *table]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            ["--data.sequence_length", "100", "--rollout.max_new_tokens", "40"],
            "--data.sequence_length 100 with rollout.max_new_tokens 40: needs 140 positions",
        ),
        (
            ["--pretraining.sequence_length", "200"],
            "--pretraining.sequence_length 200: needs 200 positions, model.max_positions is 128",
        ),
        (["--pretraining.train", '["nowhere"]'], "nowhere"),
        (
            ["--pretraining.objective", "blank_infilling"],
            "pretraining.objective blank_infilling",
        ),
        (
            ["--samples.prompts", '["{prompts}"]', "--samples.max_new_tokens", "127"],
            "--samples.prompts: prompt 1",
        ),
    ],
)
def test_what_ppo_would_meet_late_is_refused_before_it_begins(
    work, learned, capsys, tmp_path, more, says
):
    """A table of 128 positions, and text beside the answers."""
    words = ["ppo", work.config(2), "--data.train", f'["{work.folder}/prompts.jsonl"]']
    words += ["--tokenizer.path", f"{work.folder}/tokenizer", "--run.folder", tmp_path / "run"]
    words += [*learned, "--data.sequence_length", "64", "--rollout.max_new_tokens", "12"]
    words += ["--update.pretrain_coefficient", "1", "--pretraining.sequence_length", "32"]
    words += ["--pretraining.train", f'["{work.folder}/data"]']
    more = [word.replace("{prompts}", f"{work.folder}/prompts.jsonl") for word in more]
    assert says in refused(capsys, [*words, *more])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("end", [".bin", ".idx"])
def test_a_store_that_was_cut_short_is_named(work, capsys, tmp_path, end):
    for suffix in (".bin", ".idx"):
        content = (work.folder / f"data{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(content[:-9] if suffix == end else content)
    words = work.pretrain_words(work.new_run())
    said = refused(capsys, [*words, "--data.train", f'["{tmp_path}/cut"]'])
    assert f"cut{end}" in said


@pytest.mark.parametrize("fault", ["flipped", "cut", "missing", "other shape", "other depth"])
def test_a_start_that_is_damaged_or_of_another_model_is_refused(
    work, whole, capsys, tmp_path, fault
):
    start = tmp_path / "start"
    shutil.copytree(whole / "checkpoints", start)
    newest = start / (start / "latest").read_text()
    file = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    if fault in ("flipped", "cut"):
        file.write_bytes(content if fault == "flipped" else content[:-1])
    if fault == "missing":
        file.unlink()
    more = {"other shape": ["--model.ffn_size", "64"], "other depth": ["--model.num_layers", "3"]}
    words = [*work.pretrain_words(work.new_run(), "--checkpoint.start", str(start))]
    said = refused(capsys, [*words, *more.get(fault, [])])
    assert str(newest) in said
    differs = {"other shape": "ffn_size 64 (there 48)", "other depth": "num_layers 3 (there 2)"}
    assert ("must be as in" in said) == (fault in more)
    assert differs.get(fault, "") in said


def test_an_unknown_command_is_answered_with_the_closest(capsys):
    assert "did you mean pretrain" in refused(capsys, ["pretrian"])
