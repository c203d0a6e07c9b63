"""What a run's names of models mean, and what comes along with its start without being said."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from megalite.config.section import Section
from megalite.data.config import ConversationConfig
from megalite.distributed.launch import Launch
from megalite.files.fetch import fetch_together
from megalite.files.urls import is_url
from megalite.models.files import Wanted
from megalite.models.hub import HubName, folder_of, pinned
from megalite.models.hugging_face import has_chat_template, is_hugging_face
from megalite.stages.same_run import is_data
from megalite.stages.told import WRITING, section_of_run, tokenizer_of
from megalite.training.checkpoint.search import newest_facts
from megalite.training.folder.record import REWARD_MODELS, flat

SectionT = TypeVar("SectionT", bound=Section)
NAMES = ("checkpoint.start", "reward_model", "answers.reward_model")
TOKENIZER = "tokenizer.path"


@dataclass(frozen=True)
class Meaning:
    """Finds out what names mean for a run that begins or goes on.

    Attributes:
        launch: this process among the run's.
        before: the run's config when its newest checkpoint was saved, by dotted key; empty: it
            begins.
    """

    launch: Launch
    before: Mapping[str, Any]

    @classmethod
    def of(cls, launch: Launch, folder: str) -> "Meaning":
        """Of the run in a folder, which may not be there yet."""
        found = newest_facts(Path(folder) / "checkpoints")
        config = {} if found is None else found[1].get("run", {}).get("config", {})
        return cls(launch, dict(flat(config)))

    def names_in(self, config: Section) -> list[str]:
        """The keys of models and a tokenizer that may be on the Hub, or are behind URLs."""
        further = (f"{REWARD_MODELS}{name}" for name in _value(config, REWARD_MODELS[:-1]) or ())
        keys = [key for key in (*NAMES, *further, TOKENIZER) if _is_given(config, key)]
        values = {key: _value(config, key) for key in keys}
        return [k for k, text in values.items() if is_url(text) or HubName.like(text) is not None]

    def bring(self, config: SectionT, keys: list[str]) -> tuple[SectionT, list[str]]:
        """Fetch the models of some keys, as :meth:`pin`, and the data behind URLs.

        Raises:
            UserError: one isn't there or can't be fetched.

        Comm: as :meth:`pin` and :func:`fetch_together`.
        """
        config, said = self.pin(config, keys)
        return config, said + fetch_together(self.launch, urls_of_data(config))

    def pin(self, config: SectionT, keys: list[str]) -> tuple[SectionT, list[str]]:
        """Put for each name the one with its commit, and fetch it; and what is to be said.

        A run that goes on reads what it read when it began, wherever the branch is.

        Raises:
            CheckpointError: there is no such model, or it can't be fetched.

        Comm: as :func:`pinned`.
        """
        said = []
        for key in keys:
            text, was = _value(config, key), str(self.before.get(key, ""))
            if self.before and not _is_pinned(was) and not is_url(text):
                continue  # a path, and what became of it is said where the run's folder is opened
            text = _as_before(text, was)
            wanted: Wanted = "tokenizer" if key == TOKENIZER else "model"
            name, note = pinned(self.launch, key, text, wanted)
            config = _with(config, key, name)
            said += [note] if note else []
        return config, said

    def with_tokenizer(self, config: SectionT) -> tuple[SectionT, list[str]]:
        """Take the tokenizer that the start comes with where none is named; and say which."""
        start = _value(config, "checkpoint.start")
        if _is_given(config, TOKENIZER):
            return config, []
        own = self.before.get(TOKENIZER) or (tokenizer_of(start) if start else "")
        if not own or own == _value(config, TOKENIZER):
            return config, []
        said = [f"{TOKENIZER} is {shown(own)}, as {shown(start) or 'the run'} has it"]
        if not _is_given(config, "tokenizer.end_token"):
            told = section_of_run(folder_of(start), "tokenizer") if start else {}
            end = self.before.get("tokenizer.end_token", told.get("end_token", ""))
            config = _with(config, "tokenizer.end_token", end)
        return _with(config, TOKENIZER, own), said

    def with_writing(self, config: SectionT) -> tuple[SectionT, list[str]]:
        """Write conversations as the start has learned them where nothing else is said."""
        data, start = getattr(config, "data", None), _value(config, "checkpoint.start")
        if not isinstance(data, ConversationConfig):
            return config, []
        told = {key: self.before.get(f"data.{key}") for key in WRITING}
        if not self.before:
            told = self._told_by(start, _value(config, TOKENIZER))
        taken = {
            key: value
            for key, value in told.items()
            if value not in (None, getattr(data, key)) and key not in data.model_fields_set
        }
        for key, value in taken.items():
            config = _with(config, f"data.{key}", value)
        of = shown(start) or "the run"
        return config, [f"data.{key} is {value}, as {of} has it" for key, value in taken.items()]

    @staticmethod
    def _told_by(start: str, tokenizer: str) -> dict[str, Any]:
        """How a start's conversations are written, as far as it says."""
        folder = folder_of(start)
        if not start:
            return {}
        if is_hugging_face(folder):
            return {"template": "tokenizer"} if has_chat_template(folder_of(tokenizer)) else {}
        told = section_of_run(folder, "data")
        is_text = "objective" in told  # of pretraining, which writes no conversations
        return {} if is_text else {key: told[key] for key in WRITING if key in told}


def urls_of_data(config: Section) -> list[tuple[str, str]]:
    """The keys and URLs of a config's data that lie elsewhere."""
    values = ((k, v) for k, v in flat(config.model_dump(mode="json")) if is_data(k))
    return [(key, name) for key, names in values for name in names or () if is_url(name)]


def _as_before(text: str, was: str) -> str:
    """The commit that a run began with, where the same model is named without another."""
    now, then = HubName.like(text), HubName.like(was)
    is_same = now is not None and then is not None and now.repo == then.repo
    return was if is_same and _is_pinned(was) and now is not None and not now.revision else text


def shown(text: str) -> str:
    """A path, or a name without its commit."""
    name = HubName.like(text)
    return name.repo if name is not None and name.is_pinned else text


def _is_pinned(text: str) -> bool:
    name = HubName.like(text)
    return name is not None and name.is_pinned


def _within(config: Any, word: str) -> Any:
    """What a section, or a table of a section, has under a word; empty where there is none."""
    return config.get(word, "") if isinstance(config, Mapping) else getattr(config, word, "")


def _value(config: Section, key: str) -> Any:
    """The value of a key; empty where the config has no such key."""
    return reduce(_within, key.split("."), config)


def _is_given(config: Section, key: str) -> bool:
    section, _, name = key.rpartition(".")
    inside = _value(config, section) if section else config
    is_said = name in getattr(inside, "model_fields_set", (name,))  # tables have what is said alone
    return is_said and bool(_value(config, key))


def _with(config: Any, key: str, value: Any) -> Any:
    """A config in which a key has another value."""
    word, _, rest = key.partition(".")
    value = _with(_within(config, word), rest, value) if rest else value
    changed = {word: value}
    return (
        {**config, **changed} if isinstance(config, Mapping) else config.model_copy(update=changed)
    )
