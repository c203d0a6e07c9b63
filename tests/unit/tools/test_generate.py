"""What ``megalite generate`` refuses, keeps and takes from the model's own folder."""

import io
import json
import os
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from megalite.cli import main
from megalite.config import load
from megalite.data.chat.turns import Turn
from megalite.errors import ConfigError
from megalite.tools.generate import GenerateConfig, Output
from megalite.tools.speaker import writing_of

SHORT = ["--sampling.max_new_tokens", "3"]
WORDS = ["</s>", "<|im_end|>", *(f"w{n}" for n in range(2, 40))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2 with a table of 16 positions."""
    path = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    GPT2LMHeadModel(
        GPT2Config(vocab_size=40, bos_token_id=0, eos_token_id=0, **sizes)
    ).save_pretrained(path)
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "w2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(WORDS[:2])
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(path)
    return path


def generate(folder, *more, prompts=("w3 w4",)) -> int:
    words = ["generate", "--model", folder, "--prompt", json.dumps(prompts), "--run.device", "cpu"]
    return main([str(word) for word in (*words, *more)])


def test_lines_of_the_standard_input_are_utf_8_in_any_locale(folder, tmp_path, monkeypatch, capsys):
    def asked(typed: bytes) -> int:
        given = io.TextIOWrapper(io.BytesIO(typed), encoding="ascii", errors="surrogateescape")
        monkeypatch.setattr(sys, "stdin", given)
        words = ["--run.device", "cpu", "--output", str(tmp_path / "found"), *SHORT]
        return main(["generate", "--model", str(folder), *words])

    assert asked("w3 é\r\n".encode()) == 0
    assert json.loads((tmp_path / "found").read_text())["prompt"] == "w3 é"
    assert asked(b"r\xf8d\n") == 2
    assert "standard input: not UTF-8 text at byte 1" in capsys.readouterr().err


def test_an_unknown_template_is_refused_with_those_there_are(capsys):
    with pytest.raises(ConfigError, match="--template = 'vicun': must be .*did you mean 'vicuna'"):
        load(GenerateConfig, None, ["--model", "x", "--template", "vicun"])
    assert main(["generate", "--model", "x", "--template", "bogus"]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert "--template = 'bogus': must be" in said
    assert "chatml" in said


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--beam.num_beams", "3", "--sampling.top_k", "4"], "draws nothing"),
        (["--beam.num_beams", "3", "--sampling.temperature", "0.5"], "draws nothing"),
        (["--beam.length_penalty", "2"], "--beam.length_penalty: is of a beam search"),
        (["--stop", '["<|im_end|>x"]', *SHORT], "<|im_end|> is a special token"),
        (["--decoder_start", "w3"], "--data.decoder_start w3: is of an encoder-decoder"),
        (["--template", "llama3"], "template llama3: writes '<|begin_of_text|>'"),
        (["--output", "no/where.jsonl"], "--output no/where.jsonl: there is no such folder"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(folder, more, says, capsys):
    assert generate(folder, *more) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert len(said.splitlines()) == 1


def test_a_prompt_that_is_too_long_is_refused_before_any_is_answered(folder, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    output.write_text("of before\n")
    prompts = ["w3", "w4", "w5 " * 12]
    more = ["--sampling.max_new_tokens", "5", "--batch_size", "1", "--output", output]
    assert generate(folder, *more, prompts=prompts) == 2
    assert "prompt 3: needs 17 positions" in capsys.readouterr().err
    assert output.read_text() == "of before\n"


def test_answers_are_in_the_file_as_soon_as_they_are_given(tmp_path):
    path = tmp_path / "answers.jsonl"
    with Output(str(path)) as output:
        for number, answer in enumerate(("one", "zwei, naïve"), 1):
            output.add([[Turn("user", "w3")]], [answer])
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            assert len(rows) == number
            assert rows[-1] == {"prompt": "w3", "answer": answer}


def test_a_reward_model_is_refused_in_one_line(folder, tmp_path, capsys):
    rankings = tmp_path / "rankings.jsonl"
    rankings.write_text(json.dumps({"prompt": "w3", "chosen": "w4", "rejected": "w5"}) + "\n")
    words = f"rm --tokenizer.path {folder} --data.train ['{rankings}'] --run.folder {tmp_path}/run "
    words += (
        "--model.vocab_size 40 --model.hidden_size 16 --model.num_layers 1 --model.num_heads 2 "
    )
    words += "--model.ffn_size 16 --train.steps 1 --train.global_batch_size 1 --run.device cpu "
    words += "--train.micro_batch_size 1 --run.trackers []"
    assert main(words.split()) == 0
    capsys.readouterr()
    assert generate(tmp_path / "run") == 2
    said = capsys.readouterr().err.strip()
    assert "is a reward model" in said
    assert len(said.splitlines()) == 1


def test_what_the_folder_suggests_and_is_not_taken_is_said(folder, tmp_path, capsys):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    said = {"eos_token_id": 0, "num_beams": 4, "temperature": 0.6}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert generate(tmp_path, *SHORT) == 0
    error = capsys.readouterr().err
    assert f"prompts are written raw; {tmp_path} has a chat template" in error
    assert "suggests temperature 0.6, num_beams 4; options of the command decide" in error


TOLD = {
    "sft": ('template = "alpaca"\nprefix = true', ("alpaca", True)),
    "pretrain, causal": ('objective = "next_token"\nprefix = true', ("raw", False)),
    "pretrain, prefix": ('objective = "prefix_lm"\nprefix = true', ("raw", True)),
}


@pytest.mark.parametrize("run", TOLD)
def test_prompts_are_written_as_the_models_run_was_told(run, tmp_path):
    section, (template, prefix) = TOLD[run]
    (tmp_path / "config.toml").write_text(f"[data]\n{section}\n")
    checkpoint = tmp_path / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    for model in (tmp_path, checkpoint):
        told = writing_of(load(GenerateConfig, None, ["--model", str(model)]))
        assert (told.template, told.prefix) == (template, prefix)
    given = load(GenerateConfig, None, ["--model", str(tmp_path), "--template", "plain"])
    assert writing_of(given).template == "plain"


def test_several_answers_stand_apart_and_a_single_one_alone(folder, capsys):
    assert generate(folder, *SHORT, prompts=("w3 w4", "w5\nw6")) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line for line in lines if line.startswith("--- ")]
    assert titles == ["--- 1 of 2: w3 w4", "--- 2 of 2: w5 ..."]
    assert generate(folder, *SHORT) == 0
    assert "---" not in capsys.readouterr().out


def test_a_terminal_without_prompts_is_told_what_is_waited_for(folder, monkeypatch, capsys):
    ours, theirs = os.openpty()
    with open(theirs, encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        os.write(ours, b"w3 w4\n\x04")
        assert main(["generate", "--model", str(folder), "--run.device", "cpu", *SHORT]) == 0
    os.close(ours)
    assert "waits for prompts, a line each; Ctrl-D ends them" in capsys.readouterr().err
