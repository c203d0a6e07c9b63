"""A record with an input is written as its template's authors write it."""

import pytest

from megalite.data.chat.templates import Chat
from megalite.data.chat.turns import parse_conversation


class Letters:
    """A tokenizer whose tokens are characters."""

    begin_id, end_id = None, 0

    @staticmethod
    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text]


def written(template: str, turns) -> str:
    """A conversation as text; | around what is learned, $ for the end token."""
    out = ""
    for segment in Chat(template, Letters()).segments(turns):
        text = "".join(chr(token) if token else "$" for token in segment.tokens)
        out += f"|{text}|" if segment.is_target else text
    return out


def test_alpaca_is_stanfords():
    plain = {"instruction": "Add 1 and 2.", "output": "3"}
    assert written("alpaca", parse_conversation(plain)) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nAdd 1 and 2.\n\n### Response:|3$|"
    )
    about = {"instruction": "Add them.", "input": "1, {2}", "output": "3"}
    assert written("alpaca", parse_conversation(about)) == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd them.\n\n### Input:\n1, {2}\n\n### Response:|3$|"
    )


@pytest.mark.parametrize("template", ["plain", "vicuna", "chatglm2"])
def test_an_input_stands_on_the_next_line_elsewhere(template):
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert "Add.\n1 2" in written(template, parse_conversation(row))
