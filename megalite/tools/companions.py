"""What goes along with a model's weights: its tokenizer, its special tokens, code of its own."""

import json
import shutil
from pathlib import Path
from typing import Any

from megalite.config.load import read_toml
from megalite.data.tokenizers.load import load_tokenizer
from megalite.errors import ConfigError

TOKENIZER = (  # beginnings of the names of a tokenizer's files
    "tokenizer",
    "tokenization_",
    "special_tokens",
    "vocab",
    "merges",
    "added_tokens",
    "chat_template",
    "spiece",
    "sentencepiece",
    "ice_text",
)
BESIDE = ("generation_config", "quantization")


def find_tokenizer(named: str, source: Path) -> Path | None:
    """The tokenizer to carry: the named one, the source's own, or the one its run was told.

    Raises:
        ConfigError: ``named`` is no tokenizer.
    """
    if named:
        path = Path(named)
        if not path.exists() or (path.is_dir() and not has_tokenizer(path)):
            raise ConfigError(
                f"--tokenizer {named}: must be a folder with a tokenizer, a tokenizer.json or a "
                "SentencePiece .model; there is none"
            )
        return path
    if has_tokenizer(source):
        return source
    said = section_of_run(source, "tokenizer").get("path")
    return Path(said) if said and Path(said).exists() else None


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's files."""
    return any(file.name.startswith(TOKENIZER) for file in folder.iterdir() if file.is_file())


def section_of_run(source: Path, name: str) -> dict[str, Any]:
    """A section of the config of a run's folder, or of a checkpoint's run; empty without one."""
    for folder in (source, *source.resolve().parents[:2]):
        config = folder / "config.toml"
        if config.is_file():
            section: Any = read_toml(config).get(name, {})
            return section if isinstance(section, dict) else {}
    return {}


def carry_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer, a folder's or a file."""
    if source.is_file():
        name = "tokenizer.model" if source.suffix == ".model" else "tokenizer.json"
        shutil.copy2(source, target / name)
        return
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name.startswith(TOKENIZER):
            shutil.copy2(file, target / file.name)


def carry_code(source: Path, target: Path) -> None:
    """Copy the code that a folder's config names, and how its model generates."""
    for file in sorted(source.iterdir()):
        if file.is_file() and (file.suffix == ".py" or file.name.startswith(BESIDE)):
            shutil.copy2(file, target / file.name)


def say_special_tokens(target: Path) -> None:
    """Write into a folder's configs where answers end, as its tokenizer has it.

    What the configs say already stays where it agrees: an answer may have several ends.

    Raises:
        DataError: the tokenizer can't be read, as where it needs code of its own.
    """
    tokenizer = load_tokenizer(target)
    ids = {
        "bos_token_id": tokenizer.begin_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
    }
    config = _read(target / "config.json")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        config[key] = _agreed(config.get(key), ids[key])
    if config.get("is_encoder_decoder"):
        config.setdefault("decoder_start_token_id", tokenizer.pad_id)
    _write(target / "config.json", config)
    generation = _read(target / "generation_config.json")
    for key in (*ids, "decoder_start_token_id"):
        if config.get(key) is not None:
            generation[key] = _agreed(generation.get(key), config[key])
    _write(target / "generation_config.json", generation)


def _agreed(said: Any, number: Any) -> Any:
    """What a config says of a token, or ``number`` where it says another."""
    if number is None or said == number or (isinstance(said, list) and number in said):
        return said
    return number


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
