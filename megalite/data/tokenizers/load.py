"""Which library reads a tokenizer: a folder is transformers', a file tells by its suffix."""

from pathlib import Path

from megalite.data.tokenizers.hugging_face import HuggingFaceTokenizer, folder_config, open_folder
from megalite.data.tokenizers.sentence_piece import SentencePieceTokenizer
from megalite.data.tokenizers.sentence_piece_folder import SentencePieceFolder, processor_of
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.data.tokenizers.tokenizer_json import JSONTokenizer
from megalite.errors import DataError
from megalite.models.hub import folder_of


def load_tokenizer(path: Path | str, end_token: str = "", trust_code: bool = False) -> Tokenizer:
    """Load a Hugging Face folder, a ``tokenizer.json`` or a SentencePiece ``.model``.

    A model's name on the Hub is its folder in the cache.

    Args:
        path: of the tokenizer.
        end_token: ends a document or an answer; empty: as the files say.
        trust_code: whether Python code in the folder may run.

    Raises:
        DataError: there is none, it can't be read, it has no such token, or it is code that is not
            trusted.
    """
    tokenizer = _loaded(folder_of(path), trust_code)
    if end_token:
        tokenizer.end_id = tokenizer.token_id(end_token)
    return tokenizer


def _loaded(path: Path, trust_code: bool) -> Tokenizer:
    if not path.exists():
        raise DataError(
            f"{path}: no such tokenizer; give a Hugging Face folder, a tokenizer.json or a "
            "SentencePiece .model, or make one with `megalite tokenizer train`"
        )
    try:
        return _open(path, trust_code)
    except ModuleNotFoundError as error:
        raise DataError(f"{path}: needs {error.name}: pip install {error.name}") from None
    except Exception as error:  # libraries raise bare Exception on bad files, code in a folder any
        if not trust_code and "trust_remote_code" in str(error):
            raise DataError(
                f"{path}: its tokenizer is code of its own{_own_code(path)}, which runs only where "
                "it is trusted: read it, then give tokenizer.trust_code true (--trust_code of data "
                "prepare)"
            ) from None
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise DataError(f"{path}: not a tokenizer that can be read: {reason}") from None


def _own_code(path: Path) -> str:
    """The Python file that a folder's tokenizer is, behind a comma; empty if it isn't named."""
    named = folder_config(path).get("auto_map", {}).get("AutoTokenizer")
    first = next(filter(None, named if isinstance(named, list) else [named]), "")
    return f", {first.rpartition('--')[2].partition('.')[0]}.py" if first else ""


def _open(path: Path, trust_code: bool) -> Tokenizer:
    model = _sentencepiece_model(path)
    if model is not None:
        return SentencePieceTokenizer(model)
    if path.is_dir():
        inner = open_folder(path, trust_code)
        processor = processor_of(path, inner)
        if processor is None:
            return HuggingFaceTokenizer(path, inner)
        return SentencePieceFolder(path, inner, processor)
    if path.suffix == ".json":
        return JSONTokenizer(path)
    raise ValueError("must be a folder, a tokenizer.json or a SentencePiece .model")


def _sentencepiece_model(path: Path) -> Path | None:
    """The SentencePiece model at a path, or alone in a folder; None where there is none."""
    if path.is_file():
        return path if path.suffix == ".model" else None
    models = list(path.glob("*.model"))
    has_more = any((path / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
    return models[0] if len(models) == 1 and not has_more else None
