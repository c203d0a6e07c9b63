"""What the run of a stored model was told: its tokenizer, how conversations are written."""

from pathlib import Path
from typing import Any

from megalite.config.load import read_toml
from megalite.data.config import ConversationConfig
from megalite.data.tokenizers.load import load_tokenizer
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.errors import ConfigError
from megalite.files.urls import is_url
from megalite.models.files import has_tokenizer
from megalite.models.hub import folder_of
from megalite.training.folder.fingerprint import tokenizer_source

WRITING = ("template", "prefix", "decoder_start", "answer_mask", "answer_start")


def section_of_run(source: Path, name: str) -> dict[str, Any]:
    """A section of the config of a run's folder, or of a checkpoint's run; empty without one."""
    for folder in (source, *source.resolve().parents[:2]):
        config = folder / "config.toml"
        if config.is_file():
            section: Any = read_toml(config).get(name, {})
            return section if isinstance(section, dict) else {}
    return {}


def tokenizer_of(source: str) -> str:
    """The tokenizer of a stored model: beside it, or the one that its run was told; empty: none."""
    folder = folder_of(source)
    if has_tokenizer(folder):
        return source
    said = section_of_run(folder, "tokenizer").get("path", "")
    return said if is_url(said) or (said and folder_of(said).exists()) else ""


def _otherwise(data: ConversationConfig, source: str) -> dict[str, Any]:
    """What of ``data`` a stored model's run was told otherwise; nothing of a pretraining."""
    told = section_of_run(folder_of(source), "data") if source else {}
    if "objective" in told:
        return {}
    return {key: told[key] for key in WRITING if key in told and told[key] != getattr(data, key)}


def check_reward_model(config: Any, tokenizer: Tokenizer, key: str, source: str) -> None:
    """Refuse a reward model that reads other tokens than the actor writes, or written otherwise.

    Args:
        config: of the run.
        tokenizer: of the run.
        key: that names the reward model.
        source: the reward model; empty: there is none.

    Raises:
        ConfigError: it names the key, and what differs.
    """
    check_same_writing(config.data, source)
    theirs = tokenizer_of(source) if source else ""
    own = config.tokenizer.path
    if not theirs or _same_files(own, theirs):
        return
    other = load_tokenizer(theirs, trust_code=config.tokenizer.trust_code)
    difference = _difference(tokenizer, other)
    if difference:
        raise ConfigError(
            f"--{key} {source}: its tokenizer {theirs} is not that of the run, {own}: "
            f"{difference}: the two must read the same tokens"
        )


def _same_files(one: str, other: str) -> bool:
    first, second = (tokenizer_source(path) or {} for path in (one, other))
    return first.get("fingerprint") == second.get("fingerprint")


def _difference(own: Tokenizer, other: Tokenizer) -> str:
    """The first token that two tokenizers have otherwise, in words; empty: none."""
    pair = (own, other)
    special = [{number: text for text, number in one.special_tokens().items()} for one in pair]
    plain = [dict(enumerate(one.token_texts())) for one in pair]
    for number in range(max(len(texts) for texts in plain)):
        texts = [s.get(number) or p.get(number, "") for s, p in zip(special, plain, strict=True)]
        if texts[0] != texts[1]:
            return f"its token {number} is {texts[1]!r}, not {texts[0]!r}"
    return ""


def check_same_writing(data: ConversationConfig, reward_model: str) -> None:
    """Refuse answers that are written otherwise than those that a reward model learned to score.

    Raises:
        ConfigError: it names the key and both values.
    """
    for key, was in _otherwise(data, reward_model).items():
        raise ConfigError(
            f"--data.{key} {getattr(data, key)!r}: must be {was!r}, as {reward_model} learned to "
            "score answers that are written so"
        )


def notes_of_writing(data: ConversationConfig, start: str) -> list[str]:
    """What a run should know where its start learned conversations that are written otherwise."""
    return [
        f"data.{key} is {getattr(data, key)!r}; {start} was trained with {was!r}"
        for key, was in _otherwise(data, start).items()
    ]
