"""Chat templates: what is written, and which of it is learned."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megalite.data.chat.own_template import NAME
from megalite.data.chat.segments import conversation_example
from megalite.data.chat.templates import TEMPLATES, Chat
from megalite.data.chat.turns import Turn
from megalite.data.config import TemplateName
from megalite.data.tokenizers.load import load_tokenizer
from megalite.errors import ConfigError, DataError
from megalite.models.batch import IGNORE

TURNS = (Turn("user", "one two"), Turn("assistant", "three"), Turn("user", "red"))
TURNS += (Turn("assistant", "blue dog"),)
WRITTEN = {
    "plain": "one two\nthree{end}red\nblue dog{end}",
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\none two\n\n### Response:three{end}"
    "### Instruction:\nred\n\n### Response:blue dog{end}",
    "vicuna": "A chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: one two ASSISTANT:three{end}USER: red ASSISTANT:blue dog{end}",
    "chatglm2": "[Round 1]\n\n问：one two\n\n答：three{end}"
    "[Round 2]\n\n问：red\n\n答：blue dog{end}",
}


def test_the_config_knows_every_template():
    assert set(get_args(TemplateName)) == {*TEMPLATES, NAME}


def text_of(tokenizer, tokens) -> str:
    """Decoded with the end token shown."""
    parts, run = [], []
    for token in [*tokens, None]:
        if token is None or token == tokenizer.end_id:
            parts.append(tokenizer.decode(run))
            run = []
        else:
            run.append(int(token))
    return "{end}".join(parts)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_conversation_is_written_as_its_template_says(tokenizer, template):
    segments = Chat(template, tokenizer).segments(TURNS)
    tokens = [token for segment in segments for token in segment.tokens]
    assert tokens[0] == tokenizer.begin_id
    assert text_of(tokenizer, tokens[1:]) == WRITTEN[template]


@pytest.mark.parametrize("template", TEMPLATES)
def test_only_answers_and_their_ends_are_learned(tokenizer, template):
    example = conversation_example(Chat(template, tokenizer).segments(TURNS))
    learned = example.labels[example.labels != IGNORE]
    assert text_of(tokenizer, learned) == "three{end}blue dog{end}"
    at = np.flatnonzero(example.labels != IGNORE)
    following = np.append(example.decoder.tokens[1:], learned[-1])
    assert (following[at] == example.labels[at]).all()


@settings(max_examples=30)
@given(st.text("ab {}\n語", max_size=12), st.text("ab{0}語", max_size=8))
def test_braces_in_a_text_are_only_text(tokenizer, question, answer):
    chat = Chat("plain", tokenizer)
    tokens = [*chat.prompt([Turn("user", question)]), *chat.answer(answer)]
    assert text_of(tokenizer, tokens[1:]) == question + "\n" + answer + "{end}"


def test_what_is_asked_is_what_was_learned_to_follow(tokenizer):
    """The prompt of generation is the beginning of the conversation in training."""
    for template in TEMPLATES:
        chat = Chat(template, tokenizer)
        whole = [token for segment in chat.segments(TURNS) for token in segment.tokens]
        prompt = chat.prompt(TURNS[:-1])
        assert whole[: len(prompt)] == prompt
        assert whole[len(prompt) :] == chat.answer("blue dog")


def test_a_prefix_ends_where_the_first_answer_begins(tokenizer):
    segments = Chat("plain", tokenizer).segments(TURNS[:2])
    prompt = sum(len(segment.tokens) for segment in segments[:-1])
    example = conversation_example(segments, prefix=True)
    rows = np.arange(len(example.decoder.tokens)) + 1
    assert example.decoder.mask.end.tolist() == np.maximum(rows, prompt).tolist()


WRITES = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}"
BEGINS = "{% if add_generation_prompt %}[assistant] {% endif %}"
OWN = WRITES + "{{ eos_token }}\n{% endfor %}" + BEGINS


def with_template(folder, tmp_path, template: str):
    """A tokenizer folder of Hugging Face with a chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    return load_tokenizer(tmp_path), tokenizer


def test_a_tokenizers_own_template_is_written_as_transformers_writes_it(tokenizer_folder, tmp_path):
    tokenizer, theirs = with_template(tokenizer_folder, tmp_path, OWN)
    chat = Chat("tokenizer", tokenizer)
    turns = (Turn("system", "be red"), *TURNS)
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    segments = chat.segments(turns)
    tokens = [token for segment in segments for token in segment.tokens]
    assert theirs.decode(tokens) == theirs.apply_chat_template(messages, tokenize=False)
    learned = [text_of(tokenizer, segment.tokens) for segment in segments if segment.is_target]
    assert learned == ["three{end}\n", "blue dog{end}\n"]
    prompt = chat.prompt(turns[:-1])
    asked = theirs.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert theirs.decode(prompt) == asked
    assert tokens == prompt + chat.answer("blue dog")


@pytest.mark.parametrize(
    ("template", "error", "says"),
    [
        ("", ConfigError, "has no chat template"),
        (WRITES + "<over>\n{% endfor %}" + BEGINS, ConfigError, "must end with the end token"),
        (OWN + "{{ messages | length }}", DataError, "rewrites earlier turns"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no systems') }}{% endif %}"
            + OWN,
            DataError,
            "refuses turns of system, user: no systems",
        ),
    ],
)
def test_a_template_that_cannot_be_learned_is_refused(
    template, error, says, tokenizer_folder, tmp_path
):
    tokenizer, _ = with_template(tokenizer_folder, tmp_path, template)
    with pytest.raises(error, match=says):
        Chat("tokenizer", tokenizer).segments((Turn("system", "be red"), *TURNS))
