"""Bodies of OpenAI's API: what is asked, checked, and what is answered.

Source: OpenAI's API reference, "Chat" and "Completions".
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from megalite.tools.token_scores import TokenScore, chat_form, completion_form

MOST_STOPS = 16
MOST_CHOICES = 128
MOST_LIKELIEST_OF_CHAT, MOST_LIKELIEST = 20, 5  # tokens beside a drawn one
Finish = Literal["stop", "length"]
NOT_HERE = {  # what OpenAI's API has and this server hasn't, but for values that ask for nothing
    "annotations",
    "audio",
    "best_of",
    "function_call",
    "functions",
    "logit_bias",
    "modalities",
    "parallel_tool_calls",
    "prediction",
    "reasoning_effort",
    "response_format",
    "store",
    "suffix",
    "tool_choice",
    "tools",
    "tool_calls",
    "verbosity",
    "web_search_options",
}
NOTHING: tuple[object, ...] = (None, [], {})


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        body: OpenAI's error object.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        """Say why."""
        super().__init__(message)
        self.status = status
        self.body = {"message": message, "type": kind, "param": param, "code": code}


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nothing(cls, told: Any) -> Any:
        """Without the keys that are not here and ask for nothing, as clients write them all."""
        if not isinstance(told, dict):
            return told
        own = cls.model_fields
        return {k: v for k, v in told.items() if k in own or k not in NOT_HERE or v not in NOTHING}


class TextPart(_Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(_Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None

    @property
    def text(self) -> str:
        """What is said."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(_Body):
    """How an answer is streamed."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TextFormat(_Body):
    """The only form of an answer that there is."""

    type: Literal["text"] = "text"


class Asked(_Body):
    """What both kinds of request may say; the last four change no answer."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, lt=1)
    repetition_penalty: float | None = Field(None, gt=0)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None

    @property
    def stops(self) -> list[str]:
        """Texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer."""
        return self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are told beside each; None: no log-probability is."""
        return None

    def contradiction(self) -> tuple[str, str]:
        """A key that asks for what another rules out, and why; empty: there is none."""
        if self.stream_options is not None and not self.stream:
            return "stream_options", "only with stream true"
        return "", ""


class ChatBody(Asked):
    """A body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: TextFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LIKELIEST_OF_CHAT)
    tools: list[None] | None = Field(None, max_length=0)
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    logit_bias: dict[str, None] | None = Field(None, max_length=0)

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """See :class:`Asked`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def contradiction(self) -> tuple[str, str]:
        """See :class:`Asked`."""
        if self.top_logprobs is not None and not self.logprobs:
            return "top_logprobs", "only with logprobs true"
        return super().contradiction()


class CompletionBody(Asked):
    """A body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    best_of: Literal[1] | None = None
    echo: bool | None = None
    suffix: None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_LIKELIEST)
    logit_bias: dict[str, None] | None = Field(None, max_length=0)

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as tokens."""
        given: Any = self.prompt
        is_one = isinstance(given, str) or (given and isinstance(given[0], int))
        return [given] if is_one else list(given)

    @property
    def likeliest(self) -> int | None:
        """See :class:`Asked`."""
        return self.logprobs

    def contradiction(self) -> tuple[str, str]:
        """See :class:`Asked`."""
        if self.echo and self.logprobs is not None:
            return "echo", "is not supported by this server with logprobs, which a prompt has none"
        return super().contradiction()


BodyT = TypeVar("BodyT", bound=Asked)


def parsed(kind: type[BodyT], body: bytes) -> BodyT:
    """Read a body.

    Raises:
        Refused: it is no JSON, or has a key or value that isn't taken; names the first.
    """
    try:
        asked = kind.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from None
    if len(asked.stops) > MOST_STOPS or not all(asked.stops):
        raise Refused(400, f"stop: at most {MOST_STOPS} texts, none empty", param="stop")
    key, why = asked.contradiction()
    if key:
        raise Refused(400, f"{key}: {why}", param=key)
    return asked


def _refused(error: ValidationError) -> Refused:
    """The first key that isn't taken, else the value that is wrong, the innermost one."""
    found = error.errors(include_url=False, include_input=False)
    unknown = [one for one in found if one["type"] == "extra_forbidden"]
    chosen = (unknown or sorted(found, key=lambda one: -len(one["loc"])))[0]
    # a value of several types has their names in its place: "str", "list[TextPart]"
    place = [part for part in map(str, chosen["loc"]) if part != "str" and "[" not in part]
    if not place:
        return Refused(400, chosen["msg"])
    param, shown = place[0], ".".join(place)
    if param in NOT_HERE or (unknown and len(place) > 1):
        return Refused(400, f"{shown}: is not supported by this server", param=param)
    if unknown:
        return Refused(400, f"Unrecognized request argument: {param}", param=param)
    return Refused(400, f"{shown}: {chosen['msg']}", param=param)


@dataclass
class Choice:
    """One answer as it comes.

    Attributes:
        text: so far.
        finish: why it ended; None: it goes on.
        num_tokens: of it, once it ended.
        scores: of its tokens, where they are asked for.
    """

    text: str = ""
    finish: Finish | None = None
    num_tokens: int = 0
    scores: list[TokenScore] = field(default_factory=list)


@dataclass(frozen=True)
class Form:
    """The shape of answers to one request.

    Attributes:
        model: name of the model.
        is_chat: whether messages are answered, or texts continued.
        has_scores: whether log-probabilities are asked for.
        id: of the answers.
        created: Unix time.
    """

    model: str
    is_chat: bool
    has_scores: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Choice], usage: Mapping[str, int]) -> dict[str, Any]:
        """The answers at once."""
        kind = "chat.completion" if self.is_chat else "text_completion"
        made = [self._choice(number, choice) for number, choice in enumerate(choices)]
        return {**self._head(kind), "choices": made, "usage": dict(usage)}

    def chunk(self, number: int, part: Choice) -> dict[str, Any]:
        """The next part of an answer: a text, or its end."""
        text, finish = part.text, part.finish
        end = {"index": number, "logprobs": self._scores(part.scores), "finish_reason": finish}
        choice: dict[str, Any]
        if self.is_chat:
            choice = {"delta": {"content": text} if finish is None else {}, **end}
        else:
            choice = {"text": text, **end}
        return {**self._head(self._streamed), "choices": [choice]}

    def opening(self, number: int) -> dict[str, Any]:
        """The first chunk of a chat's answer, which names who speaks."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._head(self._streamed), "choices": [choice]}

    def last(self, usage: Mapping[str, int]) -> dict[str, Any]:
        """The chunk that has the usage."""
        return {**self._head(self._streamed), "choices": [], "usage": dict(usage)}

    @property
    def _streamed(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        name = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.id}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model}

    def _scores(self, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        if not self.has_scores:
            return None
        return chat_form(scores) if self.is_chat else completion_form(scores)

    def _choice(self, number: int, choice: Choice) -> dict[str, Any]:
        scores = self._scores(choice.scores)
        end = {"index": number, "logprobs": scores, "finish_reason": choice.finish}
        if not self.is_chat:
            return {"text": choice.text, **end}
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return {"message": message, **end}


def usage_of(prompt_tokens: int, choices: Sequence[Choice]) -> dict[str, int]:
    """Tokens that were read and written; a prompt of several answers counts once."""
    written = sum(choice.num_tokens for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }
