"""``megalite generate`` from published folders: transformers' answers to the same text."""

import json
from dataclasses import dataclass

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GenerationConfig, PreTrainedTokenizerFast

from megalite.cli import main
from megalite.data.chat.chat import Chat
from megalite.data.chat.examples import answer_example, learned_example, prompt_of
from megalite.data.chat.turns import Turn
from megalite.data.config import ConversationConfig
from megalite.data.tokenizers.load import load_tokenizer
from megalite.models.hugging_face import read_config
from megalite.stages.conversation import structure_of
from megalite.stages.start import said_by
from tests.parity.families import PEERS, VOCABULARY, randomise

WORDS = ["<pad>", "<s>", "</s>", "<|stop|>", *(f"w{n}" for n in range(4, VOCABULARY))]
PROMPTS = ["w7 w8 w9 w30", "w99 w5 w77 w120 w121"]
LIMIT = 8
AROUND = {"nothing": None, "end": "$A </s>", "both": "<s> $A </s>", "begin": "<s> $A"}


@dataclass(frozen=True)
class Folder:
    """A published folder.

    Attributes:
        peer: its family.
        around: what its tokenizer writes around a text.
        said: by its generation_config.json.
    """

    peer: str
    around: str
    said: dict


T5 = {"decoder_start_token_id": 0}
BART = {"decoder_start_token_id": 2}
FOLDERS = {
    "bloom": Folder("bloom", "nothing", {}),
    "llama": Folder("llama gqa", "begin", {}),
    "t5": Folder("t5", "end", T5),
    "bart": Folder("bart", "both", BART),
    "bart that begins with a token": Folder("bart", "both", BART | {"forced_bos_token_id": 1}),
    "two ends": Folder("llama gqa", "begin", {"eos_token_id": [2, 0]}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Gives a folder's path, its model and its tokenizer; each made once."""
    found = {}

    def get(name: str):
        if name not in found:
            folder, path = FOLDERS[name], tmp_path_factory.mktemp("published")
            torch.manual_seed(5)
            peer = PEERS[folder.peer].make().eval()
            randomise(peer)
            with torch.no_grad():
                for parameter in {id(p): p for p in peer.parameters()}.values():
                    parameter.mul_(3 if parameter.dim() > 1 else 1)
            said = {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1} | folder.said
            peer.generation_config = GenerationConfig(**said)
            peer.save_pretrained(path)
            tokenizer = words(AROUND[folder.around])
            tokenizer.save_pretrained(path)
            found[name] = path, peer, tokenizer
        return found[name]

    return get


def words(around: str | None) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(WORDS[:4])
    if around is not None:
        tokens = [("<s>", 1), ("</s>", 2)]
        inner.post_processor = processors.TemplateProcessing(around, special_tokens=tokens)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def theirs(peer, tokenizer, prompt: str, **options) -> list[int]:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = peer.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=LIMIT,
        do_sample=False,
        use_cache=not peer.config.is_encoder_decoder,
        **options,
    )
    return out[0, 1 if peer.config.is_encoder_decoder else ids.shape[1] :].tolist()


def ours(path, tmp_path, *more: str) -> list[str]:
    output = tmp_path / "answers.jsonl"
    given = ["generate", "--model", str(path), "--prompt", json.dumps(PROMPTS)]
    given += ["--sampling.temperature", "0", "--sampling.max_new_tokens", str(LIMIT)]
    assert main([*given, "--run.device", "cpu", "--output", str(output), *more]) == 0
    return [json.loads(line)["answer"] for line in output.read_text().splitlines()]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_text_is_continued_as_transformers_continues_it(name, made, tmp_path):
    path, peer, tokenizer = made(name)
    expected = [theirs(peer, tokenizer, prompt) for prompt in PROMPTS]
    found = ours(path, tmp_path)
    shown = [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    if "forced_bos_token_id" not in FOLDERS[name].said:
        assert found == shown
        return
    for text, shorter in zip(found, shown, strict=True):  # the forced token is one of theirs
        assert text.split()[: len(shorter.split())] == shorter.split()


def test_answers_end_at_each_end_that_the_folder_says(made, tmp_path):
    """And the same model without the second goes on."""
    path, peer, tokenizer = made("llama")
    whole = theirs(peer, tokenizer, PROMPTS[0])
    second = whole[3]
    said = json.loads((path / "generation_config.json").read_text())
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((path / name).read_bytes())
    tokenizer.save_pretrained(tmp_path)
    both = said | {"eos_token_id": [2, second]}
    (tmp_path / "generation_config.json").write_text(json.dumps(both))
    found = ours(tmp_path, tmp_path)[0]
    assert found == tokenizer.decode(whole[: whole.index(second)], skip_special_tokens=True)


def test_a_stop_that_is_a_special_token_ends_an_answer(made, tmp_path):
    path, peer, tokenizer = made("llama")
    with torch.no_grad():
        peer.lm_head.weight[3] = peer.lm_head.weight[theirs(peer, tokenizer, PROMPTS[0])[2]] * 1.01
    peer.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    whole = theirs(peer, tokenizer, PROMPTS[0])
    assert whole[2] == 3
    found = ours(tmp_path, tmp_path, "--stop", '["<|stop|>"]')[0]
    assert found == tokenizer.decode(whole[:2], skip_special_tokens=True)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_pairs_are_what_transformers_trains_an_encoder_decoder_on(name, made):
    """``tokenizer(question)`` and ``tokenizer(text_target=answer)``, the labels shifted right."""
    path, _, tokenizer = made(name)
    chat, start = Chat("raw", load_tokenizer(path)), FOLDERS[name].said["decoder_start_token_id"]
    structure = structure_of(
        ConversationConfig(), chat.tokenizer, read_config(path)[0], said_by(str(path))
    )
    turns = (Turn("user", PROMPTS[0]), Turn("assistant", PROMPTS[1]))
    example = learned_example(chat, structure, turns)
    labels = tokenizer(text_target=PROMPTS[1])["input_ids"]
    source = tokenizer(PROMPTS[0])["input_ids"]
    assert example.encoder.tokens.tolist() == source
    assert example.labels.tolist() == labels
    assert example.decoder.tokens.tolist() == [start, *labels[:-1]]
    scored = answer_example(chat, structure, turns[:1], PROMPTS[1])
    assert scored.encoder.tokens.tolist() == source
    assert scored.decoder.tokens.tolist() == [start, *labels]
    prompt = prompt_of(chat, structure, turns[:1])
    assert (list(prompt.tokens), list(prompt.encoder_tokens)) == ([start], source)


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_a_raw_prompt_is_the_tokenizers_own_encoding(name, made):
    path, _, tokenizer = made(name)
    chat = Chat("raw", load_tokenizer(path))
    assert chat.prompt((Turn("user", PROMPTS[0]),)) == tokenizer(PROMPTS[0])["input_ids"]


def test_a_decoder_starts_as_it_is_told_else_as_its_config_says_else_with_padding(made):
    path, _, _ = made("bart")
    tokenizer, model = load_tokenizer(path), read_config(path)[0]
    told = ConversationConfig(decoder_start="<s>")
    assert structure_of(told, tokenizer, model, said_by(str(path))).start_id == 1
    assert structure_of(ConversationConfig(), tokenizer, model, said_by(str(path))).start_id == 2
    assert structure_of(ConversationConfig(), tokenizer, model).start_id == tokenizer.pad_id
