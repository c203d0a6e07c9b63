"""What a conversion reads, writes and leaves, and what goes along with the weights."""

import json
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megalite.cli import main
from megalite.config import dump
from megalite.data.config import MixedConversationConfig, TokenizerConfig
from megalite.data.tokenizers.hugging_face import HuggingFaceTokenizer, open_folder
from megalite.data.tokenizers.sentence_piece import SentencePieceTokenizer
from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import build_model
from megalite.models.config import ModelConfig
from megalite.models.hugging_face import write_folder
from megalite.stages.sft import SFTConfig
from megalite.training.checkpoint.manager import CheckpointManager
from megalite.training.config import CheckpointConfig

SIZES = {"vocab_size": 300, "hidden_size": 24, "num_layers": 7, "num_heads": 4, "ffn_size": 40}
LLAMA = ModelConfig(**SIZES, tie_embeddings=False)
SMALL = {"vocab_size": 300, "num_layers": 1, "num_encoder_layers": 1}
T5 = ModelConfig(preset="t5-tiny", **SMALL)
BART = ModelConfig(preset="bart-tiny", **SMALL)


def save(config: ModelConfig, folder: Path, **more) -> Path:
    """A run's folder with a checkpoint and, with ``more`` sections, its config."""
    model = build_model(config, Mesh.single(), ParallelConfig(), seed=3)
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    facts = {"step": 1, "learners": {"model": {}}, "model": config.model_dump()}
    CheckpointManager(folder / "checkpoints", asynchronous=False).save(1, tensors, facts)
    if more:
        (folder / "config.toml").write_text(dump(SFTConfig(**more)))
    return folder


def convert(source: Path, target: Path, *more: object) -> int:
    words = ["convert", "--source", source, "--target", target, *more]
    return main([str(word) for word in words])


def in_transformers(folder: Path) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(folder, open_folder(folder, trust_code=False))


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return save(LLAMA, tmp_path_factory.mktemp("llama") / "run")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A folder as the newest transformers writes it: one token ends, begins and pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["<|end|>", "<mask>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(["the red cat"], trainer)
    names = dict.fromkeys(("eos_token", "bos_token", "pad_token"), "<|end|>")
    whole = PreTrainedTokenizerFast(
        tokenizer_object=inner, **names, additional_special_tokens=["<mask>"]
    )
    whole.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    folder = tmp_path_factory.mktemp("tokenizer")
    whole.save_pretrained(folder)
    return folder


opened: list[str] = []


def _watch(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[0], str):
        opened.append(arguments[0])


@contextmanager
def most_bytes_of_a_file(count: int) -> Iterator[None]:
    """What a write beyond ``count`` meets is what a full disk gives, with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_metadata_is_read_once_however_many_layers_there_are(run: Path, tmp_path: Path):
    sys.addaudithook(_watch)
    opened.clear()
    assert convert(run, tmp_path / "hf") == 0
    assert sum(name.endswith(".metadata") for name in opened) <= 2  # its checksum, its content


def test_the_mean_of_the_weights_is_exported_where_there_is_one(run, tmp_path: Path, capsys):
    model = build_model(LLAMA, Mesh.single(), ParallelConfig(), seed=3)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    tensors = {f"model.{name}": p for name, p in weights.items()}
    tensors |= {f"model_average.{name}": 2 * p for name, p in weights.items()}
    facts = {"step": 1, "learners": {"model": {"averages": 1.0}}, "model": LLAMA.model_dump()}
    averaged = tmp_path / "run"
    CheckpointManager(averaged / "checkpoints", asynchronous=False).save(1, tensors, facts)
    assert convert(averaged, tmp_path / "plain") == 0
    assert convert(averaged, tmp_path / "mean", "--average") == 0
    plain, mean = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "mean"))
    assert plain.keys() == mean.keys()
    assert all(torch.equal(2 * plain[name], mean[name]) for name in plain)
    capsys.readouterr()
    assert convert(run, tmp_path / "none", "--average") == 2
    assert "--average true:" in (said := capsys.readouterr().err)
    assert "its run had no train.average" in said
    assert convert(tmp_path / "plain", tmp_path / "ours", "--average") == 2
    assert "is a Hugging Face folder, which has no mean" in capsys.readouterr().err
    for key, value in (("dtype", "bf16"), ("shard_gib", "1.0"), ("family", "llama")):
        assert convert(tmp_path / "plain", tmp_path / "ours", f"--{key}", value) == 2
        assert f"--{key} {value}: is of a new Hugging Face folder" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["to a folder", "to a checkpoint"])
def test_a_full_disk_is_one_line_and_leaves_nothing(run, tmp_path, capsys, kind: str):
    source = run
    if kind == "to a checkpoint":
        source = tmp_path / "hf"
        assert convert(run, source) == 0
    capsys.readouterr()
    before = sorted(tmp_path.iterdir())
    with most_bytes_of_a_file(20_000):
        assert convert(source, tmp_path / "new" / "out") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, said
    assert str(tmp_path / "new" / "out") in said[0]
    assert "File too large" in said[0]
    assert sorted(tmp_path.iterdir()) == before


def test_a_copy_of_the_embedding_is_left_out_and_a_stranger_refused(tmp_path: Path):
    """A tied head may stand in the files again."""
    from safetensors.torch import load_file, save_file

    tied = LLAMA.model_copy(update={"tie_embeddings": True})
    assert convert(save(tied, tmp_path / "run"), tmp_path / "hf") == 0
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file)
    assert convert(tmp_path / "hf", tmp_path / "ours") == 0
    kept = {name: tensor for name, tensor in tensors.items() if "embed_tokens" not in name}
    save_file(kept, file)  # the one name of it that some libraries keep
    assert convert(tmp_path / "hf", tmp_path / "again") == 0
    assert convert(tmp_path / "again", tmp_path / "hf2") == 0
    embedding = load_file(tmp_path / "hf2" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(embedding, tensors["lm_head.weight"])
    save_file(tensors | {"model.stranger.weight": torch.ones(300, 25)}, file)
    assert convert(tmp_path / "hf", tmp_path / "none") == 2


def test_a_tokenizer_opens_in_every_version_of_transformers(run, tokenizer, tmp_path: Path):
    """Version 5 writes a class and a list that 4 doesn't know, and the template beside them."""
    assert read(tokenizer / "tokenizer_config.json")["tokenizer_class"] == "TokenizersBackend"
    assert convert(run, tmp_path / "hf", "--tokenizer", tokenizer) == 0
    written = read(tmp_path / "hf" / "tokenizer_config.json")
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in written
    assert written["additional_special_tokens"] == ["<mask>"]
    assert "m.content" in written["chat_template"]
    mine, theirs = map(in_transformers, (tokenizer, tmp_path / "hf"))
    assert theirs.encode("the <mask> cat") == mine.encode("the <mask> cat")
    assert (theirs.end_id, theirs.chat_template) == (mine.end_id, mine.chat_template)
    config = read(tmp_path / "hf" / "config.json")
    stops = read(tmp_path / "hf" / "generation_config.json")
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
        assert config[key] == stops[key] == 0


def test_templates_beside_the_default_one_are_carried(run, tokenizer, tmp_path: Path):
    """Transformers 5 keeps them in a folder, 4.45 reads them in a list."""
    shutil.copytree(tokenizer, tmp_path / "several")
    beside = tmp_path / "several" / "additional_chat_templates"
    beside.mkdir()
    (beside / "tool_use.jinja").write_text("tools: {{ messages }}")
    assert convert(run, tmp_path / "hf", "--tokenizer", tmp_path / "several") == 0
    read_again = in_transformers(tmp_path / "hf").chat_template
    assert read_again == in_transformers(tmp_path / "several").chat_template
    assert read_again["tool_use"] == "tools: {{ messages }}"
    listed = read(tmp_path / "hf" / "tokenizer_config.json")["chat_template"]
    assert {one["name"]: one["template"] for one in listed} == read_again


def test_a_bare_tokenizer_json_becomes_a_folder_with_its_special_tokens(
    run, tokenizer, tmp_path: Path
):
    file = tokenizer / "tokenizer.json"
    assert convert(run, tmp_path / "hf", "--tokenizer", file) == 0
    written = read(tmp_path / "hf" / "tokenizer_config.json")
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert read(tmp_path / "hf" / "config.json")["eos_token_id"] == 0
    assert read(tmp_path / "hf" / "config.json")["pad_token_id"] is None


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_model_is_carried_and_read_alike(run, tmp_path: Path, kind: str):
    from sentencepiece import SentencePieceTrainer

    text = tmp_path / "text.txt"
    text.write_text("the red cat sees two dogs\none cat likes the blue dog\n" * 30)
    options = {"model_type": kind, "vocab_size": 60, "hard_vocab_limit": False, "pad_id": 3}
    SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "x"), minloglevel=2, **options
    )
    assert convert(run, tmp_path / "hf", "--tokenizer", tmp_path / "x.model") == 0
    mine, theirs = (
        SentencePieceTokenizer(tmp_path / "x.model"),
        in_transformers(tmp_path / "hf"),
    )
    assert (tmp_path / "hf" / "tokenizer.model").exists()
    for words in ("the red cat", "one dog likes two", "cats"):
        assert theirs.encode(words) == mine.encode(words)
    config = read(tmp_path / "hf" / "config.json")
    found = [config[f"{key}_token_id"] for key in ("bos", "eos", "pad")]
    assert found == [1, 2, 3] == [mine.begin_id, mine.end_id, mine.pad_id]


def test_without_a_tokenizer_no_token_of_a_class_stands_in(run, tmp_path: Path, capsys):
    assert convert(run, tmp_path / "hf") == 0
    config = read(tmp_path / "hf" / "config.json")
    assert [config[f"{key}_token_id"] for key in ("bos", "eos", "pad")] == [None] * 3
    gone = TokenizerConfig(path=str(tmp_path / "gone"))
    capsys.readouterr()
    assert convert(save(LLAMA, tmp_path / "run", tokenizer=gone), tmp_path / "hf2") == 0
    assert f"without a tokenizer: its run's, {tmp_path / 'gone'}, is not" in capsys.readouterr().out


@pytest.mark.parametrize("model", [T5, BART])
def test_a_decoder_starts_and_ends_as_its_run_was_told_and_nothing_is_forced(
    model, tokenizer, tmp_path
):
    told = {"tokenizer": TokenizerConfig(path=str(tokenizer), end_token="<mask>")}
    told["data"] = MixedConversationConfig(decoder_start="<mask>")
    assert convert(save(model, tmp_path / "run", **told), tmp_path / "hf") == 0
    for name in ("config.json", "generation_config.json"):
        written = read(tmp_path / "hf" / name)
        assert written["decoder_start_token_id"] == written["eos_token_id"] == 1
    assert read(tmp_path / "hf" / "config.json")["forced_eos_token_id"] is None
    plain = convert(save(model, tmp_path / "plain"), tmp_path / "hf2", "--tokenizer", tokenizer)
    assert plain == 0
    assert read(tmp_path / "hf2" / "config.json")["decoder_start_token_id"] == 0


def test_how_answers_are_written_stays_where_only_the_published_config_says_it(tokenizer, tmp_path):
    """A generation_config.json would hide what config.json says of it, so it says that, too."""
    model = build_model(BART, Mesh.single(), ParallelConfig(), seed=3)
    folder, said = tmp_path / "published", {"num_beams": 4, "forced_bos_token_id": 7}
    tensors = {n: p.detach() for n, p in model.named_parameters()}
    write_folder(folder, BART, tensors, published={"model_type": "bart"} | said)
    assert convert(folder, tmp_path / "ours") == 0
    assert convert(tmp_path / "ours", tmp_path / "hf", "--tokenizer", tokenizer) == 0
    written = read(tmp_path / "hf" / "generation_config.json")
    assert said.items() <= written.items()
    assert written["eos_token_id"] == 0


def test_a_reward_model_is_padded_with_no_token_that_ends_answers(tokenizer, tmp_path, capsys):
    """Transformers passes over padding tokens where it looks for the last one."""
    scorer = LLAMA.model_copy(update={"head": "value"})
    words = ("--tokenizer", tokenizer)
    assert convert(save(scorer, tmp_path / "run"), tmp_path / "hf", *words) == 0
    config = read(tmp_path / "hf" / "config.json")
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["pad_token_id"] is None
    assert "one answer at a time" in capsys.readouterr().out


def test_the_code_of_a_published_model_comes_along_through_its_runs(tmp_path: Path):
    model = build_model(LLAMA, Mesh.single(), ParallelConfig(), seed=3)
    published = tmp_path / "published"
    write_folder(published, LLAMA, {n: p.detach() for n, p in model.named_parameters()})
    (published / "modeling_own.py").write_text("Own = None")
    (published / "generation_config.json").write_text('{"eos_token_id": [0, 274]}')
    start = CheckpointConfig(start=str(published))
    first = save(LLAMA, tmp_path / "first", checkpoint=start)
    start = CheckpointConfig(start=str(first))
    second = save(LLAMA, tmp_path / "second", checkpoint=start)
    assert convert(second, tmp_path / "hf") == 0
    assert (tmp_path / "hf" / "modeling_own.py").exists()
    assert read(tmp_path / "hf" / "generation_config.json")["eos_token_id"] == [0, 274]


def test_a_decoder_deeper_than_its_encoder_generates_in_transformers(tokenizer, tmp_path: Path):
    from transformers import AutoModelForSeq2SeqLM

    deep = T5.model_copy(update={"num_encoder_layers": 1, "num_layers": 2})
    words = ("--tokenizer", tokenizer)
    assert convert(save(deep, tmp_path / "run"), tmp_path / "hf", *words) == 0
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf")
    asked = torch.tensor([[5, 9, 3]])
    answer = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=3)
    assert answer[0, 0] == 0
