"""Turns of a conversation, and the record formats that they are published in.

SFT: Alpaca (``instruction``, ``input``, ``output``), ShareGPT (``conversations``), ``messages``.
Rankings: ``prompt`` with ``chosen`` and ``rejected``, or with ``answers``, best first.
Prompts: ``prompt``, Alpaca without ``output``, or ``messages`` without a last answer.
"""

from dataclasses import dataclass

from megalite.data.records import Record, check_unicode

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
ROLES |= {"system": "system", "bing": "assistant", "chatgpt": "assistant", "bard": "assistant"}


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: system, user or assistant.
        text: what is said.
        context: the text that a user's instruction is about, such as Alpaca's ``input``.
    """

    role: str
    text: str
    context: str = ""

    @property
    def whole(self) -> str:
        """The text, and its context on the next line."""
        return f"{self.text}\n{self.context}" if self.context else self.text


@dataclass(frozen=True)
class Ranking:
    """A conversation up to an answer, and answers to it, best first."""

    prompt: tuple[Turn, ...]
    answers: tuple[str, ...]


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name!r} must be text, came {type(value).__name__}")
    check_unicode(value)
    return value


def _messages(record: Record) -> tuple[Turn, ...]:
    is_sharegpt = "conversations" in record
    items = record["conversations"] if is_sharegpt else record["messages"]
    role_key, text_key = ("from", "value") if is_sharegpt else ("role", "content")
    if not isinstance(items, list) or not items:
        raise ValueError("the conversation must be a list of at least one message")
    turns = []
    for item in items:
        if not isinstance(item, dict):
            raise TypeError(f"a message must be an object, came {type(item).__name__}")
        role = _text(item[role_key], role_key)
        if role not in ROLES:
            raise ValueError(f"{role_key} {role!r} must be one of {', '.join(ROLES)}")
        turns.append(Turn(ROLES[role], _text(item[text_key], text_key)))
    return tuple(turns)


def _instruction(record: Record) -> tuple[Turn, ...]:
    text = _text(record["instruction"], "instruction")
    more = _text(record.get("input") or "", "input")
    return (Turn("user", text, more),)


def parse_prompt(record: Record) -> tuple[Turn, ...]:
    """The conversation that an answer is asked for."""
    if "prompt" in record:
        prompt = record["prompt"]
        if isinstance(prompt, list):
            return _messages({"messages": prompt})
        return (Turn("user", _text(prompt, "prompt")),)
    if "instruction" in record:
        return _instruction(record)
    if "messages" in record or "conversations" in record:
        turns = _messages(record)
        turns = turns[:-1] if turns[-1].role == "assistant" else turns
        if not turns:
            raise ValueError("the conversation has no message before the answer")
        return turns
    raise KeyError("prompt")


def parse_conversation(record: Record) -> tuple[Turn, ...]:
    """A conversation whose assistant turns are to be learned."""
    if "messages" in record or "conversations" in record:
        turns = _messages(record)
    elif "instruction" in record:
        turns = (*_instruction(record), Turn("assistant", _text(record["output"], "output")))
    else:
        turns = (*parse_prompt(record), Turn("assistant", _text(record["response"], "response")))
    if not any(turn.role == "assistant" for turn in turns):
        raise ValueError("the conversation has no assistant message to learn")
    return turns


def parse_ranking(record: Record) -> Ranking:
    """A ranking of two answers or more."""
    if "answers" in record:
        answers = record["answers"]
        if not isinstance(answers, list) or len(answers) < 2:
            raise ValueError("'answers' must be a list of at least two texts, best first")
    else:
        answers = [record["chosen"], record["rejected"]]
    return Ranking(parse_prompt(record), tuple(_text(answer, "answers") for answer in answers))
