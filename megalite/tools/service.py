"""What is served to clients: requests become orders of a desk, within limits."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from pydantic import Field

from megalite.config.section import Section
from megalite.data.chat.chat import Chat
from megalite.data.chat.examples import prompt_of
from megalite.data.chat.turns import Turn
from megalite.data.layout import as_prompt
from megalite.errors import UserError
from megalite.generation.desk import Desk, End, Order
from megalite.generation.prompts import Prompt
from megalite.generation.room import Room
from megalite.generation.sampling import SamplingConfig
from megalite.generation.scores import Scored
from megalite.tools.openai_bodies import Asked, ChatBody, CompletionBody, Refused
from megalite.tools.speaker import Speaker, split_stops
from megalite.tools.token_scores import TokenScores

SEEDS = 2**63
STOPPING = "the server is stopping"
Event = str | Scored | End  # of an answer: its next text, its next token's score, its end
OnEvent = Callable[[int, Event], None]  # is given the number of the answer, too
SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


class LimitsConfig(Section):
    """What one request, and all of them, may take."""

    context_tokens: int = Field(
        0, ge=0, description="tokens of a prompt and its answer; 0: the model's, at most 4096"
    )
    slots: int = Field(8, ge=1, description="answers written side by side")
    queue: int = Field(512, ge=0, description="answers that may wait for a slot")
    body_bytes: int = Field(2**20, ge=1, description="bytes of a request's body")
    body_s: float = Field(30.0, gt=0, description="seconds in which a request's body must come")
    request_s: float = Field(600.0, gt=0, description="seconds from a request to its answer's end")
    stop_s: float = Field(
        10.0, ge=0, description="seconds that running answers have, once the server is to stop"
    )


@dataclass
class Service:
    """A model that is served.

    Attributes:
        name: of the model in the API.
        speaker: its tokenizer, template and structure.
        desk: writes answers.
        room: of one slot.
        sampling: how answers are drawn where a request doesn't say.
        limits: of requests.
        api_key: that requests must have; empty: none.
        is_ending: whether requests are refused, as the server is stopping.
    """

    name: str
    speaker: Speaker
    desk: Desk
    room: Room
    sampling: SamplingConfig
    limits: LimitsConfig
    api_key: str = ""
    is_ending: bool = False

    @cached_property
    def _raw(self) -> Chat:
        return Chat("raw", self.speaker.chat.tokenizer)

    @property
    def context_tokens(self) -> int:
        """Most tokens of a prompt and its answer."""
        limits, model = self.limits, self.speaker.model_config
        return limits.context_tokens or min(model.max_positions, self.room.most_keys)

    def prompts(self, asked: Asked) -> list[Prompt]:
        """What is read for a request.

        Raises:
            Refused: the template can't write it, or it is empty.
        """
        if isinstance(asked, ChatBody):
            turns = [Turn(_role(message.role), message.text) for message in asked.messages]
            if turns[-1].role == "assistant":
                raise Refused(
                    400, "messages: the last must not be an assistant's", param="messages"
                )
            try:
                return [self.speaker.prompt(turns)]
            except UserError as error:
                raise Refused(400, f"messages: {error}", param="messages") from None
        assert isinstance(asked, CompletionBody)
        if not asked.prompts:
            raise Refused(400, "prompt: at least one must be given", param="prompt")
        return [self._continued(given) for given in asked.prompts]

    def _continued(self, given: str | list[int]) -> Prompt:
        """What is read to continue a text, or tokens."""
        structure = self.speaker.structure
        if isinstance(given, str):
            return prompt_of(self._raw, structure, [Turn("user", given)])
        size = self.speaker.model_config.vocab_size
        for token in given:
            if not 0 <= token < size:
                raise Refused(400, f"prompt: {token} is no token of {size}", param="prompt")
        return as_prompt(given, structure)

    def begun(self, asked: Asked) -> list[str]:
        """The text that each prompt's answers begin with: itself where it is asked for."""
        if not isinstance(asked, CompletionBody):
            return [""]
        decode = self.speaker.chat.tokenizer.decode
        texts = [given if isinstance(given, str) else decode(given) for given in asked.prompts]
        return texts if asked.echo else [""] * len(texts)

    def scores(self, start: int) -> TokenScores:
        """What collects the scores of an answer that begins at a place of its choice's text."""
        return TokenScores(self.speaker.chat.tokenizer.decode, self._names, start)

    @cached_property
    def _names(self) -> dict[int, str]:
        """The special tokens' names."""
        special = self.speaker.chat.tokenizer.special_tokens()
        return {number: text for text, number in special.items()}

    def orders(self, asked: Asked, on_event: OnEvent) -> tuple[list[Order], int]:
        """The answers that a request wants, and the tokens that are read for it.

        Raises:
            Refused: it can't be had.
        """
        prompts, stops = self.prompts(asked), self._stops(asked.stops)
        sampling, count = self._sampling(asked), len(prompts) * (asked.n or 1)
        most = self.limits.queue + self.room.slots
        if count > most:
            raise Refused(400, f"{count} answers are more than the {most} that may wait", param="n")
        orders: list[Order] = []
        for prompt in prompts:
            limit = self._limit(prompt, asked.limit)
            for choice in range(asked.n or 1):
                tell = partial(on_event, len(orders))
                scores = (0, None) if asked.likeliest is None else (asked.likeliest, tell)
                orders.append(Order(prompt, sampling, limit, choice, stops, tell, tell, *scores))
        return orders, sum(_num_read(prompt) for prompt in prompts)

    def _limit(self, prompt: Prompt, wanted: int | None) -> int:
        """Most tokens of an answer."""
        most = self.context_tokens
        if not prompt.tokens or (self.room.most_read and not prompt.encoder_tokens):
            raise Refused(400, "the prompt has no tokens: an answer needs one to start from")
        left = most - len(prompt.tokens)
        if left < 1 or len(prompt.encoder_tokens) > most:
            raise Refused(
                400,
                f"the prompt has {_num_read(prompt)} tokens; a prompt and its answer may have "
                f"{most} here",
                code="context_length_exceeded",
            )
        if wanted is not None and wanted > left:
            raise Refused(
                400,
                f"max_tokens {wanted}: with the prompt's {len(prompt.tokens)} tokens these are "
                f"more than the {most} that are allowed here: at most {left}",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return min(wanted or self.sampling.max_new_tokens, left)

    def _sampling(self, asked: Asked) -> SamplingConfig:
        chosen = {key: getattr(asked, key) for key in SAMPLING}
        told = {key: value for key, value in chosen.items() if value is not None}
        is_set = "seed" in self.sampling.model_fields_set
        own = self.sampling.seed if is_set else secrets.randbelow(SEEDS)
        seed = own if asked.seed is None else asked.seed % SEEDS
        return self.sampling.model_copy(update={**told, "seed": seed})

    def _stops(self, stops: Sequence[str]) -> list[str]:
        try:
            ids, texts = split_stops(stops, self.speaker.chat.tokenizer)
        except UserError as error:
            raise Refused(400, str(error).removeprefix("--"), param="stop") from None
        if ids - set(self.desk.end_ids):
            raise Refused(
                400,
                "stop: a special token that doesn't end answers here anyway: the server's --stop "
                "names it",
                param="stop",
            )
        return texts


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _num_read(prompt: Prompt) -> int:
    """Tokens that are read of a prompt: the encoder's, where there is one."""
    return len(prompt.encoder_tokens) or len(prompt.tokens)
