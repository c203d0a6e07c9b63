"""Chat templates: what is written, and which of it is learned."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megalite.data.chat.chat import Chat
from megalite.data.chat.examples import answer_example, conversation_example, prompt_of
from megalite.data.chat.own_template import NAME
from megalite.data.chat.templates import TEMPLATES
from megalite.data.chat.turns import Turn
from megalite.data.config import MixedConversationConfig, TemplateName
from megalite.data.structure import Structure
from megalite.data.tokenizers.load import load_tokenizer
from megalite.errors import ConfigError, DataError
from megalite.models.batch import IGNORE
from megalite.stages.rlhf.rollout import special_tokens

SYSTEM = Turn("system", "be red")
TURNS = (Turn("user", "one two"), Turn("assistant", "three"), Turn("user", "red"))
TURNS += (Turn("assistant", "blue dog"),)
WRITTEN = {
    "raw": "one twothree{end}redblue dog{end}",
    "plain": "one two\nthree{end}red\nblue dog{end}",
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\none two\n\n### Response:three{end}"
    "### Instruction:\nred\n\n### Response:blue dog{end}",
    "vicuna": "A chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: one two ASSISTANT: three{end}USER: red ASSISTANT: blue dog{end}",
    "zephyr": "<|user|>\none two{end}\n<|assistant|>\nthree{end}\n"
    "<|user|>\nred{end}\n<|assistant|>\nblue dog{end}\n",
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


@pytest.mark.parametrize("template", WRITTEN)
def test_a_conversation_is_written_as_its_template_says(tokenizer, template):
    tokens = Chat(template, tokenizer).conversation(TURNS).tokens
    assert text_of(tokenizer, tokens) == WRITTEN[template]


@pytest.mark.parametrize("template", WRITTEN)
def test_only_answers_and_their_ends_are_learned(tokenizer, template):
    example = conversation_example(Chat(template, tokenizer).conversation(TURNS))
    learned = example.labels[example.labels != IGNORE]
    answers = "three{end}blue dog{end}"
    assert text_of(tokenizer, learned) == {"vicuna": " three{end} blue dog{end}"}.get(
        template, answers
    )
    at = np.flatnonzero(example.labels != IGNORE)
    following = np.append(example.decoder.tokens[1:], learned[-1])
    assert (following[at] == example.labels[at]).all()


def test_an_answer_that_is_not_to_be_learned_is_read_and_not_learned(tokenizer):
    turns = (TURNS[0], Turn("assistant", "three", is_learned=False), *TURNS[2:])
    chat = Chat("plain", tokenizer)
    whole, part = chat.conversation(TURNS), chat.conversation(turns)
    assert (whole.tokens == part.tokens).all()
    learned = part.targets[part.targets != IGNORE]
    assert text_of(tokenizer, learned) == "blue dog{end}"


@settings(max_examples=30)
@given(st.text("ab {}\n語", max_size=12), st.text("ab{0}語", max_size=8))
def test_braces_in_a_text_are_only_text(tokenizer, question, answer):
    prompt, answered = Chat("plain", tokenizer).answered([Turn("user", question)], answer)
    assert text_of(tokenizer, prompt + answered) == question + "\n" + answer + "{end}"


@pytest.mark.parametrize("template", WRITTEN)
def test_what_is_asked_is_what_was_learned_to_follow(tokenizer, template):
    """The prompt of generation is the beginning of the conversation in training."""
    chat = Chat(template, tokenizer)
    whole = chat.conversation(TURNS).tokens.tolist()
    prompt, answer = chat.answered(TURNS[:-1], "blue dog")
    assert prompt == chat.prompt(TURNS[:-1])
    assert whole[: len(prompt) + len(answer)] == prompt + answer


@pytest.mark.parametrize("template", WRITTEN)
def test_a_system_text_is_parted_from_the_question(tokenizer, template):
    written = text_of(tokenizer, Chat(template, tokenizer).prompt((SYSTEM, TURNS[0])))
    assert "be red" in written
    assert "redone" not in written
    assert "curious" not in written


@pytest.mark.parametrize("template", ["alpaca", "vicuna"])
def test_a_system_message_that_has_no_place_is_refused(tokenizer, template):
    with pytest.raises(DataError, match="must be the first message"):
        Chat(template, tokenizer).conversation((TURNS[0], SYSTEM, *TURNS[1:]))


def test_rounds_that_a_template_can_not_write_are_refused(tokenizer):
    with pytest.raises(DataError, match="must take turns.*came user, user"):
        Chat("llama2", tokenizer).prompt((TURNS[0], TURNS[0]))


def test_a_template_whose_tokens_are_missing_is_refused_by_name(tokenizer):
    with pytest.raises(ConfigError, match=r"template chatml: writes .*'<\|im_end\|>'"):
        Chat("chatml", tokenizer)


def test_a_prefix_ends_where_the_first_answer_begins(tokenizer):
    chat = Chat("plain", tokenizer)
    example = conversation_example(chat.conversation(TURNS[:2]), prefix=True)
    rows = np.arange(len(example.decoder.tokens)) + 1
    prompt = len(chat.prompt(TURNS[:1]))
    assert example.decoder.mask.end.tolist() == np.maximum(rows, prompt).tolist()


WRITES = "{% for m in messages %}[{{ m.role }}]\n{{ m.content | trim }}"
BEGINS = "{% if add_generation_prompt %}[assistant]\n{% endif %}"
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
    turns = (SYSTEM, *TURNS)
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    conversation = chat.conversation(turns)
    written = theirs.apply_chat_template(messages, return_dict=False)
    assert conversation.tokens.tolist() == written
    learned = conversation.targets[conversation.targets != IGNORE]
    assert text_of(tokenizer, learned) == "three{end}blue dog{end}"
    prompt, answer = chat.answered(turns[:-1], "blue dog")
    asked = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert prompt == chat.prompt(turns[:-1]) == asked
    assert written[: len(prompt) + len(answer)] == prompt + answer


# As Qwen 3's, which opens the last answer alone with its thoughts; as Phi 3's, which ends the text.
HM = "{{ 'hm, ' if loop.last and m.role == 'assistant' }}"
THINKS = OWN.replace("{{ m.content", HM + "{{ m.content")
ENDS = OWN.replace("{{ eos_token }}", "<over>") + "{{ eos_token if not add_generation_prompt }}"


@pytest.mark.parametrize(
    ("template", "learned", "followed"),
    [
        (OWN, "three{end}blue dog{end}", "three{end}blue dog{end}"),
        (THINKS, "three{end}hm, blue dog{end}", "three{end}blue dog{end}"),
        (ENDS, "three<over>\nblue dog<over>\n{end}", "three<over>\nblue dog<over>\n"),
    ],
)
@pytest.mark.parametrize("first", [0, 1])
def test_a_conversation_is_what_transformers_writes_of_all_of_it(
    template, learned, followed, first, tokenizer_folder, tmp_path
):
    """Whatever a template writes of an earlier turn alone; an answer may stand first."""
    tokenizer, theirs = with_template(tokenizer_folder, tmp_path, template)
    for turns, targets in ((TURNS[first:], learned), ((*TURNS[first:], TURNS[0]), followed)):
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        conversation = Chat("tokenizer", tokenizer).conversation(turns)
        written = theirs.apply_chat_template(messages, return_dict=False)
        assert conversation.tokens.tolist() == written
        found = conversation.targets[conversation.targets != IGNORE]
        assert text_of(tokenizer, found) == targets


def test_a_reward_is_read_at_the_end_token_and_not_behind_it(tokenizer_folder, tmp_path):
    """The template writes a line break behind the end, which no rollout has."""
    tokenizer, _ = with_template(tokenizer_folder, tmp_path, OWN)
    chat, structure = Chat("tokenizer", tokenizer), Structure()
    example = answer_example(chat, structure, TURNS[:1], "three")
    ends = special_tokens(chat).end_ids
    assert [int(example.decoder.tokens[-1])] == list(ends) == [tokenizer.end_id]
    prompt = prompt_of(chat, structure, TURNS[:1])
    assert example.decoder.tokens.tolist() == [*prompt.tokens, *tokenizer.encode("three"), *ends]


@pytest.mark.parametrize(
    ("template", "error", "says"),
    [
        ("", ConfigError, "has no chat template"),
        (WRITES + "<over>\n{% endfor %}" + BEGINS, ConfigError, "must end with the end token"),
        (OWN + "{{ messages | length }}", DataError, "rewrites earlier turns"),
        (OWN.replace("m.content", "m.content[0].text"), ConfigError, "whose content is text"),
        (OWN + "{{ messages[0].content + 1 }}", DataError, "its chat template refuses turns of"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no systems') }}{% endif %}"
            + OWN,
            DataError,
            "refuses turns of system, user, assistant, user, assistant: no systems",
        ),
    ],
)
def test_a_template_that_cannot_be_learned_is_refused(
    template, error, says, tokenizer_folder, tmp_path
):
    tokenizer, _ = with_template(tokenizer_folder, tmp_path, template)
    with pytest.raises(error, match=says):
        Chat("tokenizer", tokenizer).conversation((SYSTEM, *TURNS))


def test_turns_that_a_template_does_not_write_are_refused_by_name(tokenizer):
    turns = (TURNS[0], Turn("commands", "add(1, 2)"), TURNS[1])
    with pytest.raises(DataError) as caught:
        Chat("vicuna", tokenizer).conversation(turns)
    assert str(caught.value) == (
        "a message of commands can't be written by the template vicuna, which has system, user, "
        "assistant: choose moss"
    )


def test_what_a_template_does_not_tell_apart_is_not_learned(tokenizer):
    with pytest.raises(ConfigError) as caught:
        Chat("vicuna", tokenizer, ("assistant", "user"))
    assert str(caught.value) == (
        "--data.learned user: the template vicuna tells apart assistant alone: choose moss, or "
        "leave it out"
    )


def test_some_role_is_learned():
    with pytest.raises(ConfigError, match=r"--data.learned \[\]: must name a role"):
        MixedConversationConfig(learned=())
