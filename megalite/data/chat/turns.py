"""Turns of a conversation, and the record formats that they are published in.

A question: ``messages``, ShareGPT's ``conversations``, Alpaca's ``instruction`` and ``input``,
Dolly's ``context``, or ``prompt`` as text or messages; beside them ``system`` and ``history``.
An answer: ``output``, ``response`` or ``completion``.
Rankings: ``chosen`` and ``rejected``, or ``answers``, best first; texts, or messages of the answer
alone or of the whole conversation; Anthropic's text of a whole conversation (HH-RLHF).
Beside a ranking ``margin``: how much better each answer is than the next (Llama 2).
Judged answers: a conversation and ``label``, whether its last answer is good.
Conversations with tools: ``meta_instruction`` and ``chat``, MOSS's, its turns between their marks.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from megalite.data.records import EMPTY, Fields, Record, check_unicode

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
ROLES |= {"system": "system", "bing": "assistant", "chatgpt": "assistant", "bard": "assistant"}
ROLES |= {"prompter": "user", "model": "assistant"}
ROLES |= {"thoughts": "thoughts", "commands": "commands", "results": "results"}
# What stands before a turn in MOSS's conversations, as <|Human|>:, and behind it.
MOSS_MARKS = {
    "user": ("Human", "<eoh>"),
    "thoughts": ("Inner Thoughts", "<eot>"),
    "commands": ("Commands", "<eoc>"),
    "results": ("Results", "<eor>"),
    "assistant": ("MOSS", "<eom>"),
}
MOSS_KEYS = {mark: role for role, (mark, _) in MOSS_MARKS.items() if role != "results"}
MOSS_KEYS["Tool Responses"] = "results"
ANSWERS = ("output", "response", "completion")
IS_LEARNED = ("weight", "train", "loss")  # a message's key that says so, as 0, 1, false or true
# What a conversation means by these, no template here can write.
UNWRITABLE = ("tools", "functions", "images", "image", "videos", "video", "audios", "audio")
CALLS = ("tool_calls", "tool_call_id", "function_call")
REASONING = ("reasoning_content", "reasoning", "thinking")
HH = re.compile(r"\n\n(Human|Assistant):")
WHOLE = ("conversations", "messages")  # each a whole conversation
QUESTIONS = ("prompt", "instruction", *WHOLE)
KNOWN: tuple[str, ...] = (*QUESTIONS, "input", "context", "system", "history", *ANSWERS, "answers")
KNOWN += ("chosen", "rejected", "margin", "label", "role", "content", *IS_LEARNED)
KNOWN += ("meta_instruction", "chat", "num_turns")


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: system, user or assistant; with tools also thoughts, commands (to them) or results.
        text: what is said.
        context: the text that a user's instruction is about, such as Alpaca's ``input``.
        is_learned: whether the text is where its role is learned.
    """

    role: str
    text: str
    context: str = ""
    is_learned: bool = True

    @property
    def whole(self) -> str:
        """The text, and its context on the next line; what is empty has no line."""
        return "\n".join(part for part in (self.text, self.context) if part)


Turns = tuple[Turn, ...]


@dataclass(frozen=True)
class Ranking:
    """Answers, best first, each the last turn of a whole conversation; mostly of the same one.

    Attributes:
        conversations: one an answer.
        num_good: how many answers, from the best on, are good by themselves.
        margins: how much better each answer is than the next, where the record says so.
    """

    conversations: tuple[Turns, ...]
    num_good: int = 1
    margins: tuple[float, ...] = ()

    @classmethod
    def of(cls, prompt: Turns, answers: Sequence[str]) -> "Ranking":
        """A ranking of answers to one prompt."""
        return cls(tuple((*prompt, Turn("assistant", answer)) for answer in answers))


def parse_conversation(record: Record) -> Turns:
    """A conversation whose assistant turns are to be learned."""
    fields = Fields.of(record)
    _refuse(fields, UNWRITABLE)
    key = _first(fields, (*WHOLE, "instruction", "prompt"))
    if key in WHOLE:
        turns = _before(fields, _messages(fields, fields[key], key))
    elif _is_moss(fields):
        turns = _moss(fields)
    else:
        question = _instruction(fields) if key == "instruction" else _prompt(fields)
        turns = _joined(_before(fields, question), _answer(fields))
    if not any(turn.role == "assistant" for turn in turns):
        raise ValueError("the conversation has no assistant message to learn")
    return turns


def parse_prompt(record: Record) -> Turns:
    """The conversation that an answer is asked for."""
    fields = Fields.of(record)
    _refuse(fields, UNWRITABLE)
    fields.pass_over(*ANSWERS, "answers", "chosen", "rejected")
    key = _first(fields, ("prompt", "instruction", *WHOLE))
    if key == "prompt":
        return _before(fields, _joined(_prompt(fields), ()))
    if key == "instruction":
        return _before(fields, _instruction(fields))
    if key in WHOLE:
        turns = _before(fields, _messages(fields, fields[key], key))
    elif _is_moss(fields):
        turns = _moss(fields)
    elif "chosen" in fields:
        turns = _answered((), fields, fields["chosen"], "chosen")
    else:
        raise KeyError("prompt")
    turns = turns[:-1] if turns[-1].role == "assistant" else turns
    if not turns:
        raise ValueError("the conversation has no message before the answer")
    return turns


def parse_ranking(record: Record) -> Ranking:
    """A ranking of two answers or more."""
    fields = Fields.of(record)
    _refuse(fields, UNWRITABLE)
    if _is_judged(fields):
        raise ValueError(
            "one answer with a 'label' is no ranking: `megalite dpo --loss.kind kto` learns it; "
            "rankings have 'chosen' and 'rejected', or 'answers'"
        )
    prompt = parse_prompt(fields) if any(key in fields for key in QUESTIONS) else ()
    if "completions" in fields and "chosen" not in fields and "answers" not in fields:
        raise ValueError(
            "'completions' with scores (UltraFeedback) have no order that is read here: write them "
            "as 'answers', best first, or take the binarized form with 'chosen' and 'rejected'"
        )
    if "answers" not in fields:
        pair = ("chosen", "rejected")
        return Ranking(tuple(_answered(prompt, fields, fields[name], name) for name in pair))
    answers = fields["answers"]
    if not isinstance(answers, list) or len(answers) < 2:
        raise ValueError("'answers' must be a list of at least two, best first")
    return Ranking(tuple(_answered(prompt, fields, answer, "answers") for answer in answers))


def parse_with_margin(record: Record) -> Ranking:
    """A ranking with its ``margin``: a number, or for K answers K - 1 numbers, of neighbours."""
    fields = Fields.of(record)
    ranking = parse_ranking(fields)
    if "margin" not in fields:
        return ranking
    told, count = fields["margin"], len(ranking.conversations) - 1
    margins = told if isinstance(told, list) else [told]
    is_number = [isinstance(m, int | float) and not isinstance(m, bool) for m in margins]
    if len(margins) != count or not all(is_number) or not all(0 <= m < math.inf for m in margins):
        numbers = "a number" if count == 1 else f"a list of {count} numbers"
        raise ValueError(
            f"'margin' must be {numbers} from 0 on, how much better each of the {count + 1} "
            f"answers is than the next, came {told!r}"
        )
    return replace(ranking, margins=tuple(map(float, margins)))


def parse_judged(record: Record) -> Ranking:
    """A ranking, or one answer that ``label`` calls good or not."""
    fields = Fields.of(record)
    if not _is_judged(fields):
        return parse_ranking(fields)
    label = fields["label"]
    if label not in (0, 1):
        raise ValueError(f"'label' must be true or false, came {label!r}")
    turns = parse_conversation(fields)
    if turns[-1].role != "assistant":
        raise ValueError("a conversation with 'label' must end with an assistant's message")
    return Ranking((turns,), int(label))


def _is_judged(fields: Fields) -> bool:
    return "label" in fields and not any(k in fields for k in ("answers", "chosen", "rejected"))


def _refuse(fields: Fields, keys: Sequence[str]) -> None:
    """Refuse what would be left out of a conversation and change what it says."""
    for key in keys:
        if key in fields and fields[key] not in (*EMPTY, "[]", "{}", False):
            raise ValueError(
                f"{key!r} can't be written by any template here: take it out of the record"
            )


def _text(value: object, name: str) -> str:
    """Text, or a list of parts that are all text."""
    if isinstance(value, list):
        return "".join(_part(part, name) for part in value)
    if not isinstance(value, str):
        raise TypeError(f"{name!r} must be text, came {type(value).__name__}")
    check_unicode(value)
    return value


def _part(part: object, name: str) -> str:
    if not isinstance(part, dict) or "type" not in part:
        raise TypeError(f"{name!r} must be text or a list of parts with 'type' and 'text'")
    if part["type"] != "text":
        raise ValueError(f"{name!r} has a part of type {part['type']!r}: only text can be read")
    return _text(part.get("text"), "text")


def _messages(fields: Fields, items: object, name: str) -> Turns:
    if isinstance(items, dict):
        items = [items]
    if not isinstance(items, list) or not items:
        came = type(items).__name__ if items else "none"
        raise ValueError(f"{name!r} must be a list of at least one message, came {came}")
    return tuple(_message(fields, item) for item in items)


def _message(fields: Fields, item: object) -> Turn:
    if not isinstance(item, dict):
        raise TypeError(f"a message must be an object, came {type(item).__name__}")
    message = fields.inner(item)
    _refuse(message, (*UNWRITABLE, *CALLS, *REASONING))
    role_key = "from" if "from" in message and "role" not in message else "role"
    text_key = "value" if "value" in message and "content" not in message else "content"
    for key in (role_key, text_key):
        if key not in message:
            has = "null there" if key in message.whole else ", ".join(map(repr, item)) or "nothing"
            raise ValueError(f"a message must have {key!r}, has {has}")
    role = _text(message[role_key], role_key)
    if role.lower() not in ROLES:
        raise ValueError(f"{role_key} {role!r} must be one of {', '.join(ROLES)}")
    turn = Turn(ROLES[role.lower()], _text(message[text_key], text_key))
    learned = _is_learned(message, turn.role)
    fields.unread |= {f"message.{key}" for key in message.unread}
    return replace(turn, is_learned=learned)


def _is_learned(message: Fields, role: str) -> bool:
    said = {key: message[key] for key in IS_LEARNED if key in message}
    for key, value in said.items():
        if value not in (0, 1):
            raise ValueError(f"{key!r} of a message must be 0, 1, false or true, came {value!r}")
        if value and role != "assistant":
            raise ValueError(
                f"{key!r} of a message of {role}: only an assistant's is learned; data.learned "
                "names other roles"
            )
    return all(said.values())


def _first(fields: Fields, keys: Sequence[str]) -> str:
    """The first of some keys that a record has, one that holds something if any does; or empty.

    Rows of several formats in one table have all their columns.
    """
    present = [key for key in keys if key in fields]
    return next((key for key in present if fields[key] not in EMPTY), next(iter(present), ""))


def _is_moss(fields: Fields) -> bool:
    return "meta_instruction" in fields and "chat" in fields


def _moss(fields: Fields) -> Turns:
    """A conversation as finetune_moss.py of OpenLMLab/MOSS reads it."""
    system = Turn("system", _text(fields["meta_instruction"], "meta_instruction"))
    chat, count = fields["chat"], fields.get("num_turns")
    if not isinstance(chat, dict):
        raise TypeError(f"'chat' must be an object, came {type(chat).__name__}")
    rounds = {key: said for key, said in chat.items() if said is not None}
    names = [f"turn_{number}" for number in range(1, len(rounds) + 1)]
    if set(names) != set(rounds) or count not in (None, len(names)) or not names:
        raise ValueError(
            f"'chat' must have turn_1 to turn_{{num_turns}}, which is {count}, has "
            f"{', '.join(rounds) or 'none'}"
        )
    return (system, *(turn for name in names for turn in _moss_round(name, rounds[name])))


def _moss_round(name: str, said: object) -> Iterator[Turn]:
    """The turns of a round, in their order."""
    if not isinstance(said, dict):
        raise TypeError(f"{name!r} must be an object, came {type(said).__name__}")
    for key, value in said.items():
        if value is None:
            continue
        if key not in MOSS_KEYS:
            raise ValueError(f"{key!r} of {name} must be one of {', '.join(MOSS_KEYS)}")
        role, text = MOSS_KEYS[key], _text(value, key)
        mark, end = MOSS_MARKS[role]
        before, behind = f"<|{mark}|>:" + " " * (role != "results"), f"{end}\n"
        if not (text.startswith(before) and text.endswith(behind)):
            raise ValueError(
                f"{key!r} of {name} must begin with {before!r} and end with {behind!r}, came "
                f"{text if len(text) < 60 else f'{text[:28]}...{text[-28:]}'!r}"
            )
        yield Turn(role, text.removeprefix(before).removesuffix(behind))


def _prompt(fields: Fields) -> Turns:
    prompt = fields["prompt"]
    if isinstance(prompt, list):
        turns = _messages(fields, prompt, "prompt")
    elif HH.match(text := _text(prompt, "prompt")):
        turns = _hh_turns(text)
        turns = turns[:-1] if turns[-1] == Turn("assistant", "") and turns[1:] else turns
    else:
        turns = (Turn("user", text),)
    return tuple(replace(t, is_learned=t.role != "assistant") for t in turns)


def _joined(prompt: Turns, answer: Turns) -> Turns:
    """A prompt and its answer, which may be of several turns, or is to come."""
    if prompt[-1].role == "assistant" and (not answer or answer[0].role == "assistant"):
        raise ValueError(
            "'prompt' ends with an assistant's message, and no template here writes an answer that "
            "goes on with it: put its text at the beginning of the answer, or leave it out"
        )
    return (*prompt, *answer)


def _instruction(fields: Fields) -> Turns:
    text = _text(fields["instruction"], "instruction")
    key = _first(fields, ("input", "context"))
    return (Turn("user", text, _text(fields.get(key, ""), key)),)


def _before(fields: Fields, turns: Turns) -> Turns:
    """Turns behind the system text and the earlier rounds that stand beside them."""
    system = _text(fields.get("system", ""), "system")
    if system and turns[0].role == "system":
        raise ValueError("'system' stands beside a system message: keep one of them")
    return (*((Turn("system", system),) if system else ()), *_history(fields), *turns)


def _history(fields: Fields) -> Iterator[Turn]:
    rounds = fields.get("history") or []
    if not isinstance(rounds, list):
        raise TypeError(f"'history' must be a list of rounds, came {type(rounds).__name__}")
    for pair in rounds:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("'history' must be a list of rounds, each a question and an answer")
        yield Turn("user", _text(pair[0], "history"))
        yield Turn("assistant", _text(pair[1], "history"))


def _answer(fields: Fields) -> Turns:
    key = _first(fields, ANSWERS)
    if not key:
        raise KeyError(ANSWERS[0] if "instruction" in fields else ANSWERS[1])
    answer = fields[key]
    if isinstance(answer, list):
        return _messages(fields, answer, key)
    return (Turn("assistant", _text(answer, key)),)


def _answered(prompt: Turns, fields: Fields, answer: object, name: str) -> Turns:
    """The conversation that an answer of a ranking ends."""
    if isinstance(answer, str):
        if prompt:
            return (*prompt, Turn("assistant", _text(answer, name)))
        turns = _hh_turns(_text(answer, name))
    elif isinstance(answer, (list, dict)):
        turns = _messages(fields, answer, name)
    else:
        raise TypeError(f"{name!r} must be text or messages, came {type(answer).__name__}")
    if turns[-1].role != "assistant":
        raise ValueError(f"{name!r} must end with an assistant's message")
    if turns[0].role == "assistant":
        turns = (*prompt, *turns)
    elif prompt and turns[-2].text != prompt[-1].text:
        raise ValueError(f"{name!r} is a conversation whose last question is not the prompt's")
    elif prompt and prompt[0].role == "system" and turns[0].role != "system":
        turns = (prompt[0], *turns)
    if len(turns) < 2:
        raise KeyError("prompt")
    return turns


def _hh_turns(text: str) -> Turns:
    """The turns of a text in Anthropic's form, Human: or Assistant: in front of each."""
    head, *parts = HH.split(text)
    if head or not parts:
        raise KeyError("prompt")
    roles, texts = parts[::2], parts[1::2]
    return tuple(
        Turn(ROLES["human" if role == "Human" else "assistant"], said.strip())
        for role, said in zip(roles, texts, strict=True)
    )
