"""Checkpoints to Hugging Face folders and back; answers equal to transformers' own."""

import json

import pytest
import torch

from megalite.cli import main
from tests.parity.families import PEERS, randomise


def command(*words) -> int:
    return main([str(word) for word in words])


@pytest.mark.parametrize("family", ["llama gqa", "gpt2", "bloom", "falcon 40b", "t5", "bart"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_gives_the_same_file(family: str, dtype, tmp_path, capsys):
    peer = PEERS[family].make()
    randomise(peer)
    peer.to(dtype).save_pretrained(tmp_path / "hf")
    assert command("convert", "--source", tmp_path / "hf", "--target", tmp_path / "ours") == 0
    back = ["convert", "--source", tmp_path / "ours", "--target", tmp_path / "back"]
    assert command(*back, "--shard_gib", "1e-5") == 0
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1
    again = type(peer).from_pretrained(tmp_path / "back", dtype=dtype)
    for (name, mine), (_, theirs) in zip(
        again.named_parameters(), peer.named_parameters(), strict=True
    ):
        assert mine.dtype == dtype
        assert torch.equal(mine, theirs), name


def test_an_existing_target_is_left_alone(tmp_path, capsys):
    (tmp_path / "target").mkdir()
    assert command("convert", "--source", tmp_path, "--target", tmp_path / "target") == 2
    assert "exists already" in capsys.readouterr().err


def test_a_failed_conversion_leaves_nothing(tmp_path, capsys):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "mamba"}')
    assert command("convert", "--source", tmp_path / "hf", "--target", tmp_path / "out") == 2
    assert "mamba" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.fixture(scope="module")
def exported(work, whole):
    """The pretrained tiny model as a Hugging Face folder with its tokenizer."""
    target = work.folder / "exported"
    words = ["convert", "--source", whole, "--target", target]
    assert command(*words, "--tokenizer", work.folder / "tokenizer") == 0
    return target


def theirs(exported, prompt: str, **options) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = torch.cat((torch.tensor([begin], dtype=torch.int64), inputs["input_ids"]), 1)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id or 0,
        **options,
    )
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


PROMPTS = ["the red cat", "two"]
GREEDY = ("--sampling.temperature", "0", "--sampling.max_new_tokens", "12")


@pytest.mark.parametrize(
    ("more", "options"), [((), {}), (("--beam.num_beams", "3"), {"num_beams": 3})]
)
def test_answers_are_those_of_transformers(work, whole, exported, tmp_path, more, options):
    for model in (whole, exported):
        output = tmp_path / f"{model.name}.jsonl"
        words = ["generate", "--model", model, "--prompt", json.dumps(PROMPTS), *GREEDY, *more]
        words += ["--tokenizer.path", work.folder / "tokenizer", "--output", output]
        assert command(*words) == 0
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert [row["prompt"] for row in rows] == PROMPTS
        for row in rows:
            assert row["answer"] == theirs(exported, row["prompt"], **options)


def test_one_prompt_is_streamed_and_stops_at_a_text(work, whole, capsys):
    words = ["generate", "--model", whole, "--prompt", '["the red cat"]', *GREEDY]
    words += ["--tokenizer.path", work.folder / "tokenizer"]
    assert command(*words) == 0
    answer = capsys.readouterr().out.rstrip("\n")
    stop = answer[3:5]
    assert command(*words, "--stop", json.dumps([stop])) == 0
    assert capsys.readouterr().out.rstrip("\n") == answer[: answer.index(stop)]


def test_the_seed_decides_a_drawn_answer(work, whole, capsys):
    answers = []
    for seed in (1, 1, 2):
        words = ["generate", "--model", whole, "--prompt", '["the red cat"]']
        words += ["--tokenizer.path", work.folder / "tokenizer", "--sampling.seed", seed]
        assert command(*words, "--sampling.max_new_tokens", "20") == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]


def test_a_model_that_is_not_there_is_named(work, capsys):
    assert command("generate", "--model", "nowhere", "--prompt", '["a"]') == 2
    said = capsys.readouterr().err.strip()
    assert "nowhere" in said
    assert len(said.splitlines()) == 1
