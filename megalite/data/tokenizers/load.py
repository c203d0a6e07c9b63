"""Which library reads a tokenizer: a folder is transformers', a file tells by its suffix."""

from pathlib import Path

from megalite.data.tokenizers.hugging_face import HuggingFaceTokenizer
from megalite.data.tokenizers.sentence_piece import SentencePieceTokenizer
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.data.tokenizers.tokenizer_json import JSONTokenizer
from megalite.errors import DataError


def load_tokenizer(path: Path | str, end_token: str = "") -> Tokenizer:
    """Load a Hugging Face folder, a ``tokenizer.json`` or a SentencePiece ``.model``.

    Args:
        path: of the tokenizer.
        end_token: ends a document or an answer; empty: as the files say.

    Raises:
        DataError: there is none, it can't be read, or it has no such token.
    """
    tokenizer = _loaded(path)
    if end_token:
        tokenizer.end_id = tokenizer.token_id(end_token)
    return tokenizer


def _loaded(path: Path | str) -> Tokenizer:
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"{path}: no such tokenizer; give a Hugging Face folder, a tokenizer.json or a "
            "SentencePiece .model, or make one with `megalite tokenizer train`"
        )
    try:
        return _open(path)
    except ImportError as error:
        raise DataError(f"{path}: needs {error.name}: pip install {error.name}") from None
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a tokenizer that can be read: {reason}") from None
    except Exception as error:  # the tokenizers library raises bare Exception on bad files
        raise DataError(f"{path}: not a tokenizer that can be read: {error}") from None


def _open(path: Path) -> Tokenizer:
    model = _sentencepiece_model(path)
    if model is not None:
        return SentencePieceTokenizer(model)
    if path.is_dir():
        return HuggingFaceTokenizer(path)
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
