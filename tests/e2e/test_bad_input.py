"""Wrong input is one line that says where, and exit code 2; nothing is written half."""

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
def test_a_wrong_row_of_prompts_is_named_by_file_and_line(work, capsys, tmp_path, kind):
    text, says = ROWS[kind]
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    words = ["ppo", work.config(2), "--data.train", f'["{path}"]', "--data.sequence_length", "64"]
    words += ["--tokenizer.path", f"{work.folder}/tokenizer", "--run.folder", tmp_path / "run"]
    said = refused(capsys, [*words, "--reward_model", "x", "--checkpoint.start", "x"])
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


def test_an_unknown_command_is_answered_with_the_closest(capsys):
    assert "did you mean pretrain" in refused(capsys, ["pretrian"])
