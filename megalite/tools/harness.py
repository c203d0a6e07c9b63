"""A model of ours as lm-evaluation-harness asks one: log-likelihoods, and answers to its prompts.

Contexts, continuations and windows are laid out as its own adaptor of transformers does it
(``lm_eval.models.huggingface``, version 0.4.13), so that a model has the same numbers there and
here. An encoder reads the context and the decoder gives the continuation; a prefix decoder reads
the context both ways.
"""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from megalite.data.example import Example
from megalite.data.layout import as_prompt, paired_example
from megalite.engine.model import Model
from megalite.errors import ConfigError
from megalite.generation.answer import Asked, answer
from megalite.generation.sampling import SamplingConfig
from megalite.stages.samples import decode_with
from megalite.stages.start import origin_of
from megalite.tools.judging import judge
from megalite.tools.speaker import Speaker

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import (
        handle_stop_sequences,
        has_bos_prefix,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ConfigError(
        f"--tasks: needs lm-evaluation-harness ({error.name} is missing): "
        "pip install 'megalite[eval]'"
    ) from None

POSITIONS = ("n_positions", "max_position_embeddings", "n_ctx")  # where the harness looks
ANSWER_TOKENS = 256  # of a prompt whose task doesn't say how many
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
Pair = tuple[Any, list[int], list[int]]  # what was asked, context and continuation
Numbers = dict[str, float]


@dataclass(frozen=True)
class Tasks:
    """What is measured.

    Attributes:
        names: of tasks and groups.
        manager: finds them.
        num_fewshot: examples before each question; None: as the task says.
        limit: documents of each; None: all.
        chat_template: whether questions are written by the tokenizer's own chat template.
        batch_size: sequences of a forward pass.
    """

    names: tuple[str, ...]
    manager: TaskManager
    num_fewshot: int | None = None
    limit: int | None = None
    chat_template: bool = False
    batch_size: int = 8


class HarnessModel(TemplateLM):
    """A model in the harness's words.

    All processes ask it the same; log-likelihoods are divided over dp.
    """

    def __init__(self, speaker: Speaker, model: Model, batch_size: int = 8) -> None:
        """Take a model.

        Args:
            speaker: its tokenizer and structure.
            model: the model, its parameters gathered.
            batch_size: sequences of a forward pass.
        """
        super().__init__()
        self.speaker, self.model, self.size = speaker, model, batch_size
        self.tokenizer = speaker.chat.tokenizer
        self.backend = "seq2seq" if speaker.structure.is_encoder_decoder else "causal"

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end."""
        end = self.tokenizer.end_id
        if end is None:
            raise ConfigError(
                f"--tasks: {self.tokenizer.path} has no end token that is known: name it as "
                "--tokenizer.end_token"
            )
        return int(end)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        begin = self.tokenizer.begin_id
        return self.eot_token_id if begin is None else int(begin)

    @cached_property
    def max_length(self) -> int:
        """Most tokens of a sequence: as the published config says, else the model's positions."""
        published = origin_of(self.speaker.config.model).get("published", {})
        said = [published[key] for key in POSITIONS if published.get(key)]
        return int(said[0]) if said else self.speaker.model_config.max_positions

    @property
    def tokenizer_name(self) -> str:
        """For the harness's caches."""
        return self.tokenizer.path

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Messages by the tokenizer's own template."""
        return self.tokenizer.render(chat_history, add_generation_prompt)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids of a text, with what the tokenizer writes around it unless told otherwise."""
        own, tokens = self.tokenizer, self.tokenizer.encode(string)
        begins = add_special_tokens is None and has_bos_prefix(
            string, own.token_texts()[self.prefix_token_id] or self._shown(self.prefix_token_id)
        )
        if add_special_tokens is False or begins:
            return tokens
        return own.before + tokens + own.after

    def _shown(self, token: int) -> str:
        return next((t for t, n in self.tokenizer.special_tokens().items() if n == token), "")

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[tuple[float, bool]]:
        examples = [self._example(context, rest) for _, context, rest in requests]
        found = judge(self.model, examples, self.size)
        return [(float(log_prob), bool(is_greedy)) for log_prob, is_greedy in found]

    def _example(self, context: list[int], rest: list[int]) -> Example:
        """A continuation to be scored; too long a context loses its beginning."""
        rest = rest[-self.max_length :]
        room = self.max_length if self.backend == "seq2seq" else self.max_length + 1 - len(rest)
        context = context[len(context) - room :] if len(context) > room else context
        source, target = np.array(context, dtype=np.int64), np.array(rest, dtype=np.int64)
        return paired_example(source, target, self.speaker.structure)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows that share one token."""
        windows: list[Pair] = []
        counts = []
        for (text,) in (request.args for request in requests):
            rolling = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, 1
            )
            own = [(None, *make_disjoint_window(window)) for window in rolling]
            windows += own
            counts.append(len(own))
        found = iter(self._loglikelihood_tokens(windows)) if windows else iter(())
        return [sum(next(found)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Answers to prompts, each until a stop text or its limit."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        texts = [""] * len(requests)
        for numbers in groups.values():
            contexts = [requests[number].args[0] for number in numbers]
            for number, text in zip(
                numbers, self._answers(contexts, requests[numbers[0]].args[1]), strict=True
            ):
                texts[number] = text
        return texts

    def _answers(self, contexts: Sequence[str], told: dict[str, Any]) -> list[str]:
        """Answers to prompts that are asked alike."""
        options = normalize_gen_kwargs(told, ANSWER_TOKENS)
        most = int(options.pop("max_gen_toks"))
        stops = handle_stop_sequences(options.pop("until", None), eos=None)
        sampling = _sampling(options, most)
        is_pair = self.backend == "seq2seq"
        room = self.max_length if is_pair else self.max_length - most
        if room < 1:
            raise ConfigError(
                f"--tasks: asks for {most} tokens of an answer, the model has {self.max_length} "
                "positions"
            )
        read = [self.tok_encode(context)[-room:] for context in contexts]
        prompts = [as_prompt(tokens, self.speaker.structure) for tokens in read]
        # transformers counts an encoder's rows among those of max_length, and so does the harness
        limits = [len(tokens) + most - 1 if is_pair else most for tokens in read]
        ending = self.speaker.ending([stop for stop in stops if stop])
        device = self.speaker.device
        asked = Asked(prompts, range(len(prompts)), self.size, device, limits)
        found = answer(decode_with(self.model), asked, sampling, ending)
        decoded = [self.tokenizer.decode(found.answer(n)) for n in range(len(prompts))]
        return [postprocess_generated_text(text, stops, None) for text in decoded]


def _sampling(options: dict[str, Any], most: int) -> SamplingConfig:
    """How a task wants tokens to be chosen.

    Raises:
        ConfigError: it wants something that isn't here.
    """
    draws = options.pop("do_sample", False)
    chosen = {key: options.pop(key) for key in SAMPLING if options.get(key) is not None}
    if options:
        raise ConfigError(
            f"--tasks: asks for {', '.join(options)} in its generation_kwargs, which is not done "
            f"here; there are until, max_gen_toks, do_sample, {', '.join(SAMPLING)}"
        )
    heat = chosen.pop("temperature", 1.0)
    temperature = float(heat) if draws else 0.0
    return SamplingConfig(max_new_tokens=most, temperature=temperature, **chosen)


def task_manager(tasks: Sequence[str], folder: str) -> TaskManager:
    """What finds tasks by name: those of a folder, then the harness's own.

    Raises:
        ConfigError: there is none of a name.
    """
    own = TaskManager(include_path=folder, include_defaults=False) if folder else None
    if own is not None and all(task in own.all_tasks for task in tasks):
        return own
    manager = TaskManager(include_path=folder or None)
    for task in tasks:
        if task not in manager.all_tasks:
            near = f" or in {folder}" if folder else "; --task_folder names one of your own"
            raise ConfigError(f"--tasks {task}: no such task in lm-evaluation-harness{near}")
    return manager


def measure_tasks(speaker: Speaker, model: Model, tasks: Tasks) -> dict[str, Numbers]:
    """What the harness measures on tasks: numbers of each, by name.

    Raises:
        ConfigError: a task asks for what isn't here.
    """
    adaptor = HarnessModel(speaker, model, tasks.batch_size)
    with redirect_stdout(sys.stderr):
        found = simple_evaluate(
            adaptor,
            tasks=list(tasks.names),
            num_fewshot=tasks.num_fewshot,
            limit=tasks.limit,
            task_manager=tasks.manager,
            apply_chat_template=tasks.chat_template,
            bootstrap_iters=0,
            log_samples=False,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    assert found is not None
    return {name: _numbers(told) for name, told in found["results"].items()}


def _numbers(told: dict[str, Any]) -> Numbers:
    """The numbers of a task; ``metric,filter`` without a filter of no effect."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in told.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
