"""A record with an input is written as its template's authors write it."""

import pytest

from megalite.data.chat.chat import Chat
from megalite.data.chat.turns import parse_conversation
from megalite.models.batch import IGNORE


def written(template: str, turns, tokenizer) -> str:
    """A conversation as text; | before what is learned, $ for the end token."""
    conversation = Chat(template, tokenizer).conversation(turns)
    tokens, learned = conversation.tokens.tolist(), conversation.targets != IGNORE
    first = int(learned.argmax())
    assert tokens[-1] == tokenizer.end_id
    return tokenizer.decode(tokens[:first]) + "|" + tokenizer.decode(tokens[first:-1]) + "$"


def test_alpaca_is_stanfords(tokenizer):
    plain = {"instruction": "Add 1 and 2.", "output": "3"}
    assert written("alpaca", parse_conversation(plain), tokenizer) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nAdd 1 and 2.\n\n### Response:|3$"
    )
    about = {"instruction": "Add them.", "input": "1, {2}", "output": "3"}
    assert written("alpaca", parse_conversation(about), tokenizer) == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd them.\n\n### Input:\n1, {2}\n\n### Response:|3$"
    )


@pytest.mark.parametrize("template", ["plain", "raw", "vicuna", "llama2", "mistral"])
def test_an_input_stands_on_the_next_line_elsewhere(template, tokenizer):
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert "Add.\n1 2" in written(template, parse_conversation(row), tokenizer)
