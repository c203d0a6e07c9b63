"""Every stage of every structure: T5, BART, LLaMA, GLM and ChatGLM2, each as small as can be."""

import json
import math

import pytest
import torch

from megalite.cli import main
from tests.e2e.conftest import losses

SPECIAL = ["[MASK]", "[gMASK]", "<sop>", "<eop>", "<mask>", "[NLU]", "[S2S]", "[NLG]"]
POST_NORM = {
    "norm": "layer_norm",
    "norm_position": "post",
    "final_norm": "false",
    "embedding_norm": "true",
    "gated": "false",
    "activation": "gelu",
    "qkv_bias": "true",
    "attention_bias": "true",
    "ffn_bias": "true",
}
MODELS = {
    "t5": {
        "num_encoder_layers": "1",
        "position": "relative",
        "gated": "false",
        "activation": "relu",
        "attention_scale": "1.0",
        "head_size": "20",
    },
    "bart": {"num_encoder_layers": "1", "position": "learned", "position_offset": "2", **POST_NORM},
    "llama": {"num_kv_heads": "1"},
    "glm": {"rope_axes": "2", "norm": "layer_norm", "activation": "gelu", "gated": "false"},
    "chatglm2": {
        "num_kv_heads": "1",
        "rotary_size": "8",
        "rope_interleaved": "true",
        "qkv_bias": "true",
    },
}
OBJECTIVES = {
    "t5": ["--data.objective", "span_corruption", "--data.sequence_length", "40"],
    "bart": ["--data.objective", "denoising"],
    "llama": ["--data.objective", "u_palm", "--data.prefix", "false"],
    "glm": ["--data.objective", "blank_infilling"],
    "chatglm2": ["--data.objective", "prefix_lm"],
}
LAYOUTS = {
    "glm": ["--data.prefix", "true", "--data.answer_mask", "[gMASK]"]
    + ["--data.answer_start", "<sop>"],
    "chatglm2": ["--data.template", "chatglm2"],
    "bart": ["--data.decoder_start", "<|endoftext|>"],
}


def command(*words) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def text(work):
    """A tokenizer with special tokens, and a store of it."""
    source = ["--source", f'["{work.folder}/corpus.jsonl"]']
    folder = work.folder / "special"
    train = ["tokenizer", "train", *source, "--vocab_size", "330", "--sentinels", "20"]
    assert command(*train, "--special_tokens", json.dumps(SPECIAL), "--output", folder) == 0
    prepare = ["data", "prepare", *source, "--tokenizer", folder, "--processes", "1"]
    assert command(*prepare, "--output", work.folder / "special_data") == 0
    return folder


class Family:
    """The runs of one model, each stage from the one before."""

    def __init__(self, name: str, work, tokenizer) -> None:
        self.name, self.work = name, work
        self.words = [work.config(2), "--tokenizer.path", tokenizer, "--model.vocab_size", "330"]
        self.words += ["--model.num_layers", "1", "--train.evaluate_every", "1"]
        for key, value in MODELS[name].items():
            self.words += [f"--model.{key}", value]

    def run(self, stage: str, *more):
        folder = self.work.new_run()
        assert command(stage, *self.words, "--run.folder", folder, *more) == 0
        assert not torch.distributed.is_initialized()  # a process that ends in it may be aborted
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert len(losses(folder)) == 2
        assert all(math.isfinite(x) for row in rows for x in row.values() if isinstance(x, float))
        return folder, rows

    def tuned(self, stage: str, data: str, start, *more):
        path = f'["{self.work.folder}/{data}.jsonl"]'
        files = ["--data.train", path, "--data.heldout", path, "--checkpoint.start", start]
        layout = ["--data.sequence_length", "112", *LAYOUTS.get(self.name, [])]
        return self.run(stage, *files, *layout, *more)


@pytest.mark.parametrize("name", MODELS)
def test_every_stage_runs(name, work, text, capsys):
    family = Family(name, work, text)
    data = f'["{work.folder}/special_data"]'
    words = ["--data.train", data, "--data.heldout", data, "--data.sequence_length", "64"]
    pretrained, rows = family.run("pretrain", *words, *OBJECTIVES[name])
    assert any("heldout_loss" in row for row in rows)
    sft, _ = family.tuned("sft", "sft", pretrained)
    rm, rows = family.tuned("rm", "rankings", sft)
    assert any("heldout_accuracy" in row for row in rows)
    rollout = ["--rollout.max_new_tokens", "6", "--rollout.micro_batch_size", "2"]
    _, rows = family.tuned("ppo", "prompts", sft, "--reward_model", rm, *rollout)
    steps = [row for row in rows if "kl" in row]
    assert abs(steps[0]["kl"]) < 1e-4  # the first rollout is by the reference itself
    assert {"heldout_reward", "value_loss", "response_tokens"} <= {
        key for row in rows for key in row
    }


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("t5", ["--data.objective", "next_token"], "needs a decoder alone"),
        ("t5", ["--data.objective", "blank_infilling"], "needs a decoder alone"),
        ("llama", ["--data.objective", "denoising"], "needs an encoder-decoder"),
        (
            "llama",
            ["--data.objective", "span_corruption", "--data.sequence_length", "900"],
            "extra",
        ),
        ("glm", ["--data.prefix_lm.split_token", "||", *OBJECTIVES["chatglm2"]], '"||"'),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    name, more, says, work, text, capsys
):
    family, folder = Family(name, work, text), work.new_run()
    words = ["--data.train", f'["{work.folder}/special_data"]', "--run.folder", folder]
    assert command("pretrain", *family.words, *words, *more) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert len(said.splitlines()) == 1
    assert not folder.exists()


def test_the_given_split_of_a_decoder_is_a_token_of_the_text(work, text, capsys):
    family = Family("llama", work, text)
    words = ["--data.train", f'["{work.folder}/special_data"]', "--data.sequence_length", "64"]
    family.run(
        "pretrain", *words, "--data.objective", "prefix_lm", "--data.prefix_lm.split_token", "a"
    )


def test_a_sentencepiece_model_smaller_than_the_model_goes_through_t5s_case(work, tmp_path, capsys):
    """Prepared, pretrained by span corruption and answered with ids that the tokenizer lacks."""
    import sentencepiece

    rows = (work.folder / "corpus.jsonl").read_text().splitlines()
    texts = [json.loads(row)["text"] for row in rows]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(tmp_path / "own"),
        vocab_size=60,
        user_defined_symbols=[f"<extra_id_{number}>" for number in range(20)],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path, store = tmp_path / "own.model", tmp_path / "store"
    source = ["--source", f'["{work.folder}/corpus.jsonl"]', "--processes", "1"]
    assert command("data", "prepare", *source, "--tokenizer", path, "--output", store) == 0
    family = Family("t5", work, path)
    samples = ["--samples.prompts", f'["{work.folder}/prompts.jsonl"]', "--samples.temperature", 9]
    words = ["--data.train", f'["{store}"]', "--data.encoder_length", "64", *samples]
    run, _ = family.run("pretrain", *words, *OBJECTIVES["t5"])
    answers = [json.loads(row)["answer"] for row in (run / "samples.jsonl").open()]
    assert any(f"<{number}>" in answer for answer in answers for number in range(100, 330))
    words = ["generate", "--model", run, "--tokenizer.path", path, "--prompt", '["red cat"]']
    assert command(*words, "--run.device", "cpu") == 0
