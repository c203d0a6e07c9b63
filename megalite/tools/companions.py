"""What goes along with a model's weights: its tokenizer, its special tokens, code of its own."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from megalite.data.tokenizers.hugging_face import HuggingFaceTokenizer, open_folder
from megalite.data.tokenizers.load import load_tokenizer
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.models.files import TEMPLATES, TOKENIZER_FILES
from megalite.models.hub import folder_of
from megalite.models.hugging_face import TOKENS, is_hugging_face
from megalite.stages.special_tokens import SpecialTokens
from megalite.stages.told import section_of_run

PROBES = ("The cat sat.", "a  b   c", " a\n\tb", "x = 12345", "é e\u0301 中 🙂")
BESIDE = ("generation_config", "quantization")
# How answers are written, by configs from before there was a generation_config.json.
GENERATION = (
    *("max_length", "min_length", "do_sample", "temperature", "top_k", "top_p", "num_beams"),
    *("early_stopping", "length_penalty", "repetition_penalty", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "num_return_sequences", "bad_words_ids", "suppress_tokens"),
    *("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"),
)


def missing(source: Path) -> str:
    """Why a source has no tokenizer to carry, in words."""
    said = section_of_run(source, "tokenizer").get("path")
    why = f"its run's, {said}, is not there" if said else "none was found"
    return f"{why}; --tokenizer names one"


def published_folder(source: Path) -> Path | None:
    """The Hugging Face folder that a model came from, through the starts of its runs."""
    seen: set[Path] = set()
    while source.exists() and source.resolve() not in seen:
        if is_hugging_face(source):
            return source
        seen.add(source.resolve())
        start = section_of_run(source, "checkpoint").get("start")
        if not start:
            return None
        source = folder_of(start)
    return None


def carry_tokenizer(source: Path, target: Path) -> str:
    """Copy a tokenizer, a folder's or a file, in a form that every version of transformers opens.

    Returns:
        What transformers will read otherwise than we do, in words; empty: nothing.
    """
    if source.is_dir():
        for file in sorted(source.iterdir()):
            if file.is_file() and file.name.startswith(TOKENIZER_FILES):
                shutil.copy2(file, target / file.name)
        if (source / TEMPLATES).is_dir():
            shutil.copytree(source / TEMPLATES, target / TEMPLATES)
    elif source.suffix == ".model":
        _carry_sentencepiece(source, target)
    else:
        load_tokenizer(source).save(target)
    settings = _read(target / "tokenizer_config.json")
    if settings:
        _write(target / "tokenizer_config.json", _for_all_versions(settings, target))
    return _read_otherwise(source, target) if (target / "config.json").exists() else ""


def _read_otherwise(source: Path, target: Path) -> str:
    """What transformers reads otherwise than we do, in words: a model's type may choose a class."""
    try:
        ours = load_tokenizer(source)
        theirs = HuggingFaceTokenizer(target, open_folder(target, trust_code=False))
    except Exception:  # of several libraries: said where the special tokens are read
        return ""
    other = [text for text in PROBES if theirs.encode(text) != ours.encode(text)]
    if not other:
        return ""
    return f"{source}: transformers reads some texts as other tokens here, such as {other[0]!r}"


def _carry_sentencepiece(source: Path, target: Path) -> None:
    """Copy a SentencePiece model, and say how transformers reads it.

    Its LlamaTokenizer reads BPE; unigram models become a tokenizer.json.

    Source: sentencepiece_model.proto of google/sentencepiece has the number of each kind.
    """
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    from transformers.convert_slow_tokenizer import SpmConverter

    shutil.copy2(source, target / "tokenizer.model")
    model = SentencePieceProcessor(model_file=str(source))
    protocol: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    training = protocol.ModelProto.FromString(source.read_bytes()).trainer_spec
    numbers = {"bos_token": model.bos_id(), "eos_token": model.eos_id()}
    numbers |= {"unk_token": model.unk_id(), "pad_token": model.pad_id()}
    settings: dict[str, Any] = {
        role: model.id_to_piece(number) if number >= 0 else None for role, number in numbers.items()
    }
    if training.model_type == training.BPE:
        settings |= {"tokenizer_class": "LlamaTokenizer", "legacy": False}
        settings |= {"add_bos_token": False, "add_eos_token": False}
    else:
        converted = SpmConverter(SimpleNamespace(vocab_file=str(source))).converted()
        converted.save(str(target / "tokenizer.json"))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write(target / "tokenizer_config.json", settings)


def _for_all_versions(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A tokenizer_config.json in words that transformers 4 and 5 know."""
    settings = dict(settings)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    default, named = folder / "chat_template.jinja", sorted((folder / TEMPLATES).glob("*.jinja"))
    files = ({"default": default} if default.is_file() else {}) | {f.stem: f for f in named}
    texts = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    if texts:
        several = [{"name": name, "template": text} for name, text in texts.items()]
        settings.setdefault("chat_template", several if named else texts["default"])
    return settings


def carry_code(source: Path, target: Path) -> None:
    """Copy the code that a folder's config names, and how its model generates."""
    folders = [source, published_folder(source)]
    for folder in filter(None, folders):
        for file in sorted(folder.iterdir()):
            is_wanted = file.suffix == ".py" or file.name.startswith(BESIDE)
            if file.is_file() and is_wanted and not (target / file.name).exists():
                shutil.copy2(file, target / file.name)


@dataclass(frozen=True)
class SaidBefore:
    """What decides a model's special tokens beside its tokenizer.

    Attributes:
        published: the config that the model came from.
        decoder_start: the first token of its run's decoder, by its text; empty: none was said.
        end_token: ends its run's answers, by its text; empty: as the tokenizer has it.
        trust_code: whether code in its tokenizer's folder may run.
    """

    published: Mapping[str, Any] = field(default_factory=dict)
    decoder_start: str = ""
    end_token: str = ""
    trust_code: bool = False

    @classmethod
    def by(cls, source: Path, published: Mapping[str, Any], is_own: bool) -> "SaidBefore":
        """What a source's run was told; ``is_own``: its tokenizer is the one that is carried."""
        told = section_of_run(source, "tokenizer") if is_own else {}
        return cls(
            published,
            section_of_run(source, "data").get("decoder_start", ""),
            told.get("end_token", ""),
            told.get("trust_code", False),
        )


def say_special_tokens(target: Path, before: SaidBefore) -> str:
    """Write into a folder's configs where answers end, as its tokenizer has it.

    What the configs say already stays where it agrees: an answer may have several ends.

    Returns:
        What a user of the folder must know, in words; empty: nothing.

    Raises:
        DataError: the tokenizer can't be read, as where it needs code of its own.
    """
    tokenizer = load_tokenizer(target, before.end_token, before.trust_code)
    ids: dict[str, int | None] = {
        "bos_token_id": tokenizer.begin_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id if _has_padding(target) else None,
    }
    config = _read(target / "config.json")
    for key in TOKENS:
        config[key] = _agreed(config.get(key), ids[key])
    if config["architectures"][0].endswith("ForSequenceClassification"):
        return _say_score_place(target, config)
    if config.get("is_encoder_decoder"):
        config |= _decoder_tokens(tokenizer, before)
    _write(target / "config.json", config)
    generation = _read(target / "generation_config.json") or {
        key: config[key] for key in GENERATION if config.get(key) is not None
    }
    for key in (*TOKENS, "decoder_start_token_id"):
        if config.get(key) is not None:
            generation[key] = _agreed(generation.get(key), config[key])
    if config.get("use_cache") is False:
        generation["use_cache"] = False
    _write(target / "generation_config.json", generation)
    return ""


def _has_padding(folder: Path) -> bool:
    """Whether a tokenizer's files name a token for padding."""
    files = ("tokenizer_config.json", "special_tokens_map.json")
    return any(_read(folder / name).get("pad_token") for name in files)


def _decoder_tokens(tokenizer: Tokenizer, before: SaidBefore) -> dict[str, Any]:
    """What a decoder starts with; nothing is forced that the published config doesn't force."""
    start = SpecialTokens.of(before.published).decoder_start
    start = tokenizer.pad_id if start is None else start
    if before.decoder_start:
        start = tokenizer.token_id(before.decoder_start)
    forced = ("forced_bos_token_id", "forced_eos_token_id")
    kept = {key: before.published.get(key) for key in forced}
    return {"decoder_start_token_id": start} | kept


def _say_score_place(target: Path, config: dict[str, Any]) -> str:
    """Let transformers read a reward at an answer's last token; it passes over padding tokens."""
    padding, end = config["pad_token_id"], config["eos_token_id"]
    if padding in (end if isinstance(end, list) else [end]):
        config["pad_token_id"] = None
    _write(target / "config.json", config)
    if config["pad_token_id"] is not None:
        return ""
    return (
        "no padding token but what also ends answers: pad_token_id is null, and transformers "
        "scores one answer at a time"
    )


def _agreed(said: Any, number: Any) -> Any:
    """What a config says of a token, or ``number`` where it says another."""
    if number is None or said == number or (isinstance(said, list) and number in said):
        return said
    return number


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
