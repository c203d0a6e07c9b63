"""Named chat templates: the ids and the targets of their authors' code, restated here.

Source: each function names the published code whose rule it says again, in text and ``encode``.
"""

import json
import re
import string
from itertools import pairwise

import numpy as np
import pytest
import sentencepiece
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from megalite.data.chat.chat import Chat
from megalite.data.chat.datasets import Conversations
from megalite.data.chat.examples import answer_example, learned_example, prompt_of
from megalite.data.chat.long_rows import RowRules
from megalite.data.chat.templates import BAICHUAN, BAICHUAN2, MOSS, TEMPLATES
from megalite.data.chat.turns import Turn
from megalite.data.structure import AnswerBlank, Structure
from megalite.data.tokenizers.load import load_tokenizer
from megalite.models.batch import IGNORE

SPECIAL = ["[gMASK]", "<sop>", "<eoh>", "<eom>", "<|im_start|>", "<|im_end|>"]
SPECIAL += ["<eot>", "<eoc>", "<eor>"]
SPECIAL += ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<EOT>", *BAICHUAN, *BAICHUAN2]
WORDS = "A chat between user and assistant. USER: US ASSISTANT: Instruction Response Below is an "
WORDS += "answer good day INST SYS Human MOSS Round system 问 答 是 好 the of to that is"
TEXTS = [
    ("What is good?", "A good day. "),
    ("US: two\nlines", "yes"),
    ("三  spaces", "是好"),
    ("q", "12"),
]
ROUNDS = [1, 3]
SYSTEMS = ["", "BE A PIRATE"]


def corpus() -> list[str]:
    generator = np.random.default_rng(0)
    words = WORDS.split(" ")
    lines = [" ".join(generator.choice(words, 9)) for _ in range(400)]
    return [*lines, string.printable.replace("\r", "").replace("\x0b", "").replace("\x0c", "")]


class Peer:
    """How an author's code sees a tokenizer.

    Attributes:
        encode: from a text to ids, nothing around it and no special token in it.
        bos, eos: ids.
        path: of the tokenizer.
    """

    def __init__(self, path, encode, number, adds_bos: bool) -> None:
        self.path, self.encode, self.number, self.adds_bos = path, encode, number, adds_bos
        self.bos, self.eos = number("<s>"), number("</s>")

    def whole(self, text: str) -> list[int]:
        """A text with special tokens in it, each stretch between them encoded whole."""
        pattern = "|".join(map(re.escape, [*SPECIAL, "<s>", "</s>"]))
        ids = []
        for part in re.split(f"({pattern})", text):
            ids += [self.number(part)] if re.fullmatch(pattern, part) else self.encode(part)
        return ids

    def call(self, text: str) -> list[int]:
        """``tokenizer(text).input_ids``."""
        return [self.bos] * self.adds_bos + self.whole(text)


@pytest.fixture(scope="module")
def peers(tmp_path_factory) -> dict[str, Peer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_prefix=str(folder / "llama"),
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        control_symbols=SPECIAL,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "llama.model"))
    found = {
        "sentencepiece": Peer(
            folder / "llama.model", lambda text: model.encode(text), model.piece_to_id, True
        )
    }
    as_fast(model).save_pretrained(folder / "fast")
    found["fast"] = Peer(folder / "fast", found["sentencepiece"].encode, model.piece_to_id, True)
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "</s>", *SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(corpus(), trainer)
    bytes_bpe = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    bytes_bpe.save_pretrained(folder / "bytes")

    def encode(text: str) -> list[int]:
        return bytes_bpe(text, add_special_tokens=False)["input_ids"]

    found["bytes"] = Peer(folder / "bytes", encode, bytes_bpe.convert_tokens_to_ids, False)
    return found


def as_fast(model) -> PreTrainedTokenizerFast:
    """LLaMA's fast tokenizer of a SentencePiece model, as transformers converts it."""
    pieces = {model.id_to_piece(i): i for i in range(model.vocab_size())}
    merges = [
        (model.get_score(number), piece[:at], piece[at:])
        for piece, number in pieces.items()
        for at in range(1, len(piece))
        if piece[:at] in pieces and piece[at:] in pieces
    ]
    ranked = [(a, b) for _, a, b in sorted(merges, key=lambda one: -one[0])]
    inner = Tokenizer(
        models.BPE(pieces, ranked, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.add_special_tokens(
        [AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>", *SPECIAL)]
    )
    from tokenizers import processors

    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", pieces["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def turns_of(rounds: int, system: str) -> list[Turn]:
    turns = [Turn("system", system)] if system else []
    for question, answer in TEXTS[:rounds]:
        turns += [Turn("user", question), Turn("assistant", answer)]
    return turns


def spoken(peer: Peer, text: str, marks: list[tuple[int, int]]):
    """A text that is tokenized whole, learned between these characters."""
    ids = peer.call(text)
    learned = {
        place
        for first, last in marks
        for place in range(len(peer.call(text[:first])), len(peer.call(text[:last])))
    }
    return ids, [ids[place] if place in learned else IGNORE for place in range(len(ids))]


def with_marks(parts: list[tuple[str, bool]]) -> tuple[str, list[tuple[int, int]]]:
    ends = np.cumsum([0, *(len(text) for text, _ in parts)]).tolist()
    marks = [span for span, (_, learned) in zip(pairwise(ends), parts, strict=True) if learned]
    return "".join(text for text, _ in parts), marks


def alpaca(peer: Peer, system: str, rounds):
    """preprocess of stanford_alpaca's train.py: source and target are one text."""
    system = system or (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
    )
    parts = [(f"{system}\n\n", False)]
    for question, answer in rounds:
        parts.append((f"### Instruction:\n{question}\n\n### Response:", False))
        parts.append((f"{answer}</s>", True))
    return spoken(peer, *with_marks(parts))


def vicuna(peer: Peer, system: str, rounds):
    """get_prompt of FastChat's conversation.py, ADD_COLON_TWO, sep " ", sep2 "</s>"."""
    parts = [
        (
            system
            or "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions.",
            False,
        ),
        (" ", False),
    ]
    for question, answer in rounds:
        parts += [("USER" + ": " + question + " ", False), ("ASSISTANT" + ":", False)]
        parts.append((" " + answer + "</s>", True))
    return spoken(peer, *with_marks(parts))


def zephyr(peer: Peer, system: str, rounds):
    """The chat template in zephyr-7b-beta's tokenizer_config.json, as text."""
    parts = [(f"<|system|>\n{system}</s>\n", False)] if system else []
    for question, answer in rounds:
        parts.append((f"<|user|>\n{question}</s>\n<|assistant|>\n", False))
        parts += [(f"{answer}</s>", True), ("\n", False)]
    return spoken(peer, *with_marks(parts))


def lima(peer: Peer, system: str, rounds):
    """Section 3 of LIMA's paper: a token of its own behind each turn."""
    parts = [(f"{system}<EOT>", False)] if system else []
    for question, answer in rounds:
        parts += [(f"{question}<EOT>", False), (f"{answer}<EOT>", True)]
    return spoken(peer, *with_marks(parts))


def chatml(peer: Peer, system: str, rounds):
    """The template of TRL's setup_chat_format; no BOS, as apply_chat_template writes none."""
    parts = [(f"<|im_start|>system\n{system}<|im_end|>\n", False)] if system else []
    for question, answer in rounds:
        parts.append((f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", False))
        parts += [(f"{answer}<|im_end|>", True), ("\n", False)]
    ids, labels = spoken(peer, *with_marks(parts))
    return (ids[1:], labels[1:]) if peer.adds_bos else (ids, labels)


def joined(parts: list[tuple[list[int], bool]]):
    ids = [token for part, _ in parts for token in part]
    return ids, [token if learned else IGNORE for part, learned in parts for token in part]


def chatglm(peer: Peer, system: str, rounds):
    """preprocess_function_train of ChatGLM-6B's ptuning/main.py."""
    (*history, (query, answer)), prompt = rounds, system + "\n" if system else ""
    if not history:
        prompt += query
    else:
        for turn, (old_query, response) in enumerate(history):
            prompt += f"[Round {turn}]\n问：{old_query}\n答：{response}\n"
        prompt += f"[Round {len(history)}]\n问：{query}\n答："
    blank = [peer.number("[gMASK]"), peer.number("<sop>")]
    return joined([(peer.encode(prompt) + blank, False), (peer.encode(answer) + [peer.eos], True)])


def chatglm2(peer: Peer, system: str, rounds):
    """build_prompt of chatglm2-6b's tokenizer, preprocess_function_train of its ptuning/main.py."""
    (*history, (query, answer)), prompt = rounds, system + "\n\n" if system else ""
    for i, (old_query, response) in enumerate(history):
        prompt += f"[Round {i + 1}]\n\n问：{old_query}\n\n答：{response}\n\n"
    prompt += f"[Round {len(history) + 1}]\n\n问：{query}\n\n答："
    a_ids = [peer.number("[gMASK]"), peer.number("<sop>"), *peer.encode(prompt)]
    return joined([(a_ids, False), (peer.encode(answer) + [peer.eos], True)])


def llama2(peer: Peer, system: str, rounds):
    """chat_completion of llama's generation.py: each round is one text with its own BOS and EOS."""
    ids, labels = [], []
    for number, (question, answer) in enumerate(rounds):
        if system and number == 0:
            question = "<<SYS>>\n" + system + "\n<</SYS>>\n\n" + question
        prompt = f"[INST] {question.strip()} [/INST]"
        body = peer.encode(f"{prompt} {answer.strip()} ")
        start = len(peer.encode(prompt))
        ids += [peer.bos, *body, peer.eos]
        labels += [IGNORE] * (1 + start) + body[start:] + [peer.eos]
    return ids, labels


def llama3(peer: Peer, system: str, rounds):
    """ChatFormat of llama3's tokenizer.py."""

    def header(role: str) -> list[int]:
        start, end = peer.number("<|start_header_id|>"), peer.number("<|end_header_id|>")
        return [start, *peer.encode(role), end, *peer.encode("\n\n")]

    eot = [peer.number("<|eot_id|>")]
    parts = [([peer.number("<|begin_of_text|>")], False)]
    if system:
        parts.append((header("system") + peer.encode(system.strip()) + eot, False))
    for question, answer in rounds:
        parts.append((header("user") + peer.encode(question.strip()) + eot, False))
        parts.append((header("assistant"), False))
        parts.append((peer.encode(answer.strip()) + eot, True))
    return joined(parts)


def mistral(peer: Peer, system: str, rounds):
    """InstructTokenizerV1 of mistral-common."""
    parts = [([peer.bos], False)]
    for number, (question, answer) in enumerate(rounds):
        content = system + "\n\n" + question if number == 0 and system else question
        parts.append((peer.encode(f"[INST] {content} [/INST]"), False))
        parts.append((peer.encode(answer) + [peer.eos], True))
    return joined(parts)


def moss(peer: Peer, system: str, rounds):
    """SFTDataset of MOSS's finetune_moss.py on the rounds of its README; answers are learned."""
    parts = [(peer.call(system + "\n" if system else MOSS), False)]
    for question, answer in rounds:
        parts.append((peer.whole(f"<|Human|>: {question}<eoh>\n"), False))
        value = f"<|MOSS|>: {answer}<eom>\n"
        body = peer.whole(value)
        first, last = len(peer.encode("<|MOSS|>:")), len(peer.whole(value[:-1]))
        parts += [(body[:first], False), (body[first:last], True), (body[last:], False)]
    return joined(parts)


def baichuan_of(marks: tuple[str, str]):
    def baichuan(peer: Peer, system: str, rounds):
        """preprocessing of Baichuan2's fine-tune.py; a system text as build_chat_input has it."""
        ids, labels = peer.encode(system), [IGNORE] * len(peer.encode(system))
        for number, (question, answer) in enumerate(rounds):
            ids += [peer.number(marks[0]), *peer.encode(question)]
            labels += [peer.eos if number else IGNORE] + [IGNORE] * len(peer.encode(question))
            ids += [peer.number(marks[1]), *peer.encode(answer)]
            labels += [IGNORE, *peer.encode(answer)]
        return [*ids, peer.eos], [*labels, peer.eos]

    return baichuan


AUTHORS = {
    "alpaca": alpaca,
    "vicuna": vicuna,
    "chatglm": chatglm,
    "chatglm2": chatglm2,
    "llama2": llama2,
    "llama3": llama3,
    "mistral": mistral,
    "moss": moss,
    "baichuan": baichuan_of(BAICHUAN),
    "baichuan2": baichuan_of(BAICHUAN2),
    "chatml": chatml,
    "zephyr": zephyr,
    "lima": lima,
}
KINDS = ("sentencepiece", "fast", "bytes")


def test_every_template_that_has_authors_is_here():
    assert set(TEMPLATES) == {*AUTHORS, "raw", "plain"}


def structure_for(chat: Chat, template: str) -> Structure:
    blank = TEMPLATES[template].blank
    return Structure(blank=blank and AnswerBlank(*map(chat.tokenizer.token_id, blank)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", AUTHORS)
def test_ids_and_targets_are_those_of_the_authors_code(template, kind, peers):
    peer = peers[kind]
    chat = Chat(template, load_tokenizer(peer.path))
    structure = structure_for(chat, template)
    for rounds in ROUNDS:
        for system in SYSTEMS:
            ids, labels = AUTHORS[template](peer, system, TEXTS[:rounds])
            example = learned_example(chat, structure, turns_of(rounds, system))
            assert example.decoder.tokens.tolist() == ids[:-1]
            assert example.labels.tolist() == labels[1:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", AUTHORS)
def test_a_prompt_is_what_its_answer_was_learned_behind(template, kind, peers):
    peer = peers[kind]
    chat = Chat(template, load_tokenizer(peer.path))
    structure = structure_for(chat, template)
    for rounds in ROUNDS:
        ids, labels = AUTHORS[template](peer, "", TEXTS[:rounds])
        learned = [place for place, label in enumerate(labels) if label != IGNORE]
        last = max(p for p in learned if p - 1 not in learned and labels[p] == ids[p])
        prompt = prompt_of(chat, structure, turns_of(rounds, "")[:-1])
        assert list(prompt.tokens) == ids[:last]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["plain", "raw", *AUTHORS])
def test_a_reward_is_read_at_the_end_token_that_is_learned_last(template, kind, peers):
    """What the reward model reads ends with the token at which a rollout ends."""
    chat = Chat(template, load_tokenizer(peers[kind].path))
    structure, turns = structure_for(chat, template), turns_of(1, "")
    example = answer_example(chat, structure, turns[:-1], turns[-1].text)
    learned = learned_example(chat, structure, turns)
    assert [int(example.decoder.tokens[-1])] == chat.end_ids
    assert learned.labels[learned.labels != IGNORE][-1] == chat.end_ids[0]
    whole = np.append(learned.decoder.tokens, learned.labels[-1])
    assert whole[: len(example)].tolist() == example.decoder.tokens.tolist()
    prompt = prompt_of(chat, structure, turns[:-1])
    assert example.decoder.tokens[: len(prompt.tokens)].tolist() == list(prompt.tokens)


ASIDE = "<|Inner Thoughts|>: None<eot>\n", "<|Commands|>: None<eoc>\n"
TOOL = "<|Inner Thoughts|>: it is 3 of 5<eot>\n", '<|Commands|>: Calculate("3 / 5")<eoc>\n'
FORMS = [
    (*ASIDE, "<|Results|>: None<eor>\n"),
    (*TOOL, "<|Results|>:\nCalculate => 0.6\n<eor>\n"),
    (*ASIDE, "<|Results|>:\nNone\n<eor>\n"),
]
MOSS_LEARNS = ("marks", "user", "thoughts", "commands", "assistant")


def moss_record() -> dict:
    """A conversation as SFT_data of OpenLMLab/MOSS has them, with tools."""
    keys = ("Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS")
    chat = {}
    for number, ((question, answer), inner) in enumerate(zip(TEXTS, FORMS, strict=False), 1):
        human, moss = f"<|Human|>: {question}<eoh>\n", f"<|MOSS|>: {answer}<eom>\n"
        chat[f"turn_{number}"] = dict(zip(keys, (human, *inner, moss), strict=True))
    meta = MOSS + "- Inner thoughts: enabled.\n- Calculator: enabled. API: Calculate(expression)\n"
    return {"conversation_id": 1, "meta_instruction": meta, "num_turns": len(chat), "chat": chat}


def moss_labels(peer: Peer, record: dict, most: int):
    """load_data and __getitem__ of finetune_moss.py; its 5 and 2 are tokens of its tokenizer."""
    front, behind = len(peer.encode("<|Results|>:")), len(peer.whole("<eor>\n"))
    ids = peer.call(record["meta_instruction"])
    spans = [(0, len(ids))]
    for number in range(record["num_turns"]):
        turn, silent = [], []
        for key, value in record["chat"][f"turn_{number + 1}"].items():
            own = peer.whole(value)
            if key == "Tool Responses":
                silent.append((len(ids + turn) + front, len(ids + turn + own) - behind))
            turn += own
        if len(ids + turn) > most:
            break
        ids, spans = ids + turn, spans + silent
    labels = list(ids)
    for first, end in spans:
        labels[first:end] = [IGNORE] * (end - first)
    return ids, labels


@pytest.mark.parametrize("kind", KINDS)
def test_moss_learns_all_but_its_instruction_and_what_tools_say(kind, peers, tmp_path):
    """Whole, and where the last round doesn't fit."""
    peer, record = peers[kind], moss_record()
    (tmp_path / "rows.jsonl").write_text(json.dumps(record) + "\n")
    chat = Chat("moss", load_tokenizer(peer.path), MOSS_LEARNS)
    whole = len(moss_labels(peer, record, 10**6)[0])
    for most in (whole, whole - 1):
        ids, labels = moss_labels(peer, record, most)
        rules = RowRules(most - 1, "shorten")
        read = Conversations([str(tmp_path / "rows.jsonl")], chat, Structure(), rules, False)
        assert (len(ids) == whole) == (most == whole)
        assert [*read[0].decoder.tokens.tolist(), ids[-1]] == ids
        assert read[0].labels.tolist() == labels[1:]


def test_mistral_with_tokens_for_its_marks_is_its_third_format(tmp_path):
    """InstructTokenizerV3 of mistral-common: the system text stands in the last question."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_prefix=str(tmp_path / "v3"),
        vocab_size=200,
        byte_fallback=False,
        hard_vocab_limit=False,
        control_symbols=["[INST]", "[/INST]"],
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "v3.model"))
    begin, end = (model.piece_to_id(mark) for mark in ("[INST]", "[/INST]"))
    ids = [model.bos_id()]
    for number, (question, answer) in enumerate(TEXTS):
        content = "BE A PIRATE\n\n" + question if number + 1 == len(TEXTS) else question
        ids += [begin, *model.encode(content), end, *model.encode(answer.rstrip(" "))]
        ids.append(model.eos_id())
    chat = Chat("mistral", load_tokenizer(tmp_path / "v3.model"))
    turns = turns_of(len(TEXTS), "BE A PIRATE")
    assert chat.conversation(turns).tokens.tolist() == ids
