"""Alpaca's recipe on a tiny LLaMA whose tokenizer has one token more than it has rows."""

import json
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megalite.cli import main
from megalite.data.tokenizers.load import load_tokenizer
from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import build_model
from megalite.engine.weights import grown
from megalite.errors import CheckpointError
from megalite.models.batch import Batch, Stream
from megalite.models.outputs import Logits
from megalite.ops.mask import causal
from megalite.stages.start import load_start, stored_config

SIZES = {"hidden_size": 16, "ffn_size": 24, "num_layers": 2, "num_heads": 2, "num_kv_heads": 0}
MORE = ["--train.epochs", "1", "--train.global_batch_size", "2", "--run.threads", "1"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tokenizer):
    """A tiny LLaMA in transformers' form with a row less than the tokenizer has tokens."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    rows = load_tokenizer(tokenizer).vocab_size - 1
    heads = {"num_attention_heads": 2, "max_position_embeddings": 512}
    LlamaForCausalLM(LlamaConfig(vocab_size=rows, **sizes, **heads)).save_pretrained(folder)
    return folder, rows


def sft(folder, llama, tokenizer, tmp_path, *more: str) -> int:
    data = tmp_path / "rows.jsonl"
    row = {"instruction": "the red cat", "output": "sees a dog"}
    data.write_text(json.dumps(row) + "\n" + json.dumps(row | {"output": "a cat"}) + "\n")
    words = ["sft", "recipe:alpaca-7b", "--data.train", f'["{data}"]']
    sizes = SIZES | {"vocab_size": load_tokenizer(tokenizer).vocab_size}
    words += [word for key, n in sizes.items() for word in (f"--model.{key}", str(n))]
    words += ["--tokenizer.path", str(tokenizer), "--checkpoint.start", str(llama)]
    words += ["--run.folder", str(folder), "--run.device", "cpu", "--run.trackers", "[]"]
    return main([*words, *MORE, *more])


def logits(model, tokens: torch.Tensor) -> torch.Tensor:
    rows = tokens.shape[1]
    positions = torch.arange(rows, dtype=torch.int32).expand(1, rows)
    stream = Stream(tokens, positions, causal(1, rows))
    batch = Batch(stream, torch.full_like(tokens, -100), torch.zeros(1, dtype=torch.int64))
    return model.evaluate([batch], Logits())[0]


def test_a_run_grows_the_tables_and_transformers_reads_them(llama, tokenizer, tmp_path, capsys):
    folder, rows = llama
    not_grown = ["--checkpoint.grow_vocabulary", "false"]
    assert sft(tmp_path / "run", folder, tokenizer, tmp_path, *not_grown) == 2
    assert f"vocab_size {rows + 1} (there {rows})" in capsys.readouterr().err
    assert sft(tmp_path / "run", folder, tokenizer, tmp_path) == 0
    assert f"grows from {rows} to {rows + 1}" in capsys.readouterr().out
    words = ["--source", str(tmp_path / "run"), "--target", str(tmp_path / "exported")]
    assert main(["convert", *words, "--tokenizer", str(tokenizer)]) == 0
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "exported").eval()
    assert theirs.config.vocab_size == rows + 1
    config, _ = stored_config(tmp_path / "run")
    ours = build_model(config, Mesh.single(), ParallelConfig(), seed=9)
    load_start(ours, str(tmp_path / "run"))
    tokens = torch.arange(rows - 8, rows + 1)[None]  # the new one among them
    with torch.no_grad():
        expected = theirs(tokens).logits
    assert torch.allclose(logits(ours, tokens), expected, atol=1e-5)
    assert sft(tmp_path / "run", folder, tokenizer, tmp_path, "--train.epochs", "2") == 0


def test_adapters_say_that_new_rows_dont_learn(llama, tokenizer, tmp_path, capsys):
    more = ["--lora.rank", "2", "--train.epochs", "0", "--train.steps", "1"]
    assert sft(tmp_path / "run", llama[0], tokenizer, tmp_path, *more) == 0
    assert "checkpoint.grow_vocabulary adds stay the mean of the others" in capsys.readouterr().out


def test_new_rows_are_the_mean_of_the_others(llama, tmp_path):
    folder, rows = llama
    config = stored_config(folder)[0].model_copy(update={"vocab_size": rows + 3})
    model = build_model(config, Mesh.single(), ParallelConfig(), seed=1)
    with pytest.raises(CheckpointError, match=f"vocab_size {rows + 3} \\(there {rows}\\)"):
        load_start(model, str(folder))
    load_start(model, str(folder), grows=True)
    theirs = LlamaForCausalLM.from_pretrained(folder)
    tables = {
        "embedding.weight": theirs.model.embed_tokens.weight,
        "head.weight": theirs.lm_head.weight,
    }
    for name, parameter in model.named_parameters():
        if name in tables:
            stored = tables[name].detach()
            assert torch.equal(parameter[:rows], stored)
            for row in parameter[rows:]:
                assert torch.allclose(row, stored.double().mean(0).float(), atol=1e-7)


def test_no_row_is_taken_away(llama):
    folder, rows = llama
    config = stored_config(folder)[0].model_copy(update={"vocab_size": rows - 1})
    model = build_model(config, Mesh.single(), ParallelConfig(), seed=1)
    with pytest.raises(CheckpointError, match="vocab_size"):
        load_start(model, str(folder), grows=True)


def test_other_tensors_do_not_grow():
    norm = torch.ones(5)
    assert grown("decoder.norm.weight", norm, 7) is norm
    assert math.isclose(float(grown("head.bias", torch.arange(4.0), 5)[-1]), 1.5)
