"""The objective that a config names, made with the tokenizer's special tokens."""

from collections.abc import Sequence

import numpy as np

from megalite.data.arrays import Bool, Int64
from megalite.data.config import CorpusConfig
from megalite.data.corpus.packed_documents import Room, longest_document
from megalite.data.objectives.blank_infilling import BlankInfilling, BlankTokens
from megalite.data.objectives.denoising import Denoising
from megalite.data.objectives.mixture import U_PALM, UL2, Denoiser, Mixture
from megalite.data.objectives.objective import Objective
from megalite.data.objectives.prefix_lm import PrefixLM
from megalite.data.objectives.span_corruption import SpanCorruption
from megalite.data.structure import Structure
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.errors import ConfigError, DataError

SENTINEL = "<extra_id_{}>"
SENTENCE_ENDS = (".", "!", "?", "\n", "。", "！", "？")
MIXTURES = {"ul2": UL2, "u_palm": U_PALM}


def choose_objective(data: CorpusConfig, tokenizer: Tokenizer, structure: Structure) -> Objective:
    """The objective of a run; next-token has none.

    Raises:
        ConfigError: it needs another structure of the model.
        DataError: the tokenizer lacks its special tokens; says which and how to get them.
    """
    _check_structure(data.objective, structure)
    if data.objective == "prefix_lm":
        split = data.prefix_lm.split_token
        split_id = special_ids((split,), tokenizer, data.objective)[0] if split else None
        return PrefixLM(structure, split_id, data.prefix_lm.target_share)
    if data.objective == "denoising":
        mask = special_ids((data.denoising.mask_token,), tokenizer, data.objective)[0]
        ends = sentence_ends(tokenizer)
        return Denoising(structure, data.denoising, mask, ends, tokenizer.end_id)
    if data.objective == "blank_infilling":
        config, ends = data.blank_infilling, sentence_ends(tokenizer)
        return BlankInfilling(
            structure, config, _blank_tokens(data, tokenizer), ends, tokenizer.end_id
        )
    return _with_sentinels(data, tokenizer, structure)


def _check_structure(objective: str, structure: Structure) -> None:
    needs_encoder = objective == "denoising"
    if needs_encoder and not structure.is_encoder_decoder:
        raise ConfigError(
            "--data.objective denoising: needs an encoder-decoder; give model.num_encoder_layers, "
            "or use span_corruption or blank_infilling"
        )
    if objective == "blank_infilling" and structure.is_encoder_decoder:
        raise ConfigError(
            "--data.objective blank_infilling: needs a decoder alone, model.num_encoder_layers 0; "
            "an encoder-decoder has span_corruption and denoising"
        )


def special_ids(tokens: Sequence[str], tokenizer: Tokenizer, objective: str) -> list[int]:
    """Ids of tokens that an objective needs.

    Raises:
        DataError: some are missing; says which and how to get them.
    """
    found = {token: tokenizer.find(token) for token in tokens}
    ids = {token: number for token, number in found.items() if number is not None}
    missing = [token for token in found if token not in ids]
    if missing:
        names = ", ".join(f'"{token}"' for token in missing)
        raise DataError(
            f"{tokenizer.path}: lacks {len(missing)} special tokens of data.objective {objective}: "
            f"{names}; `megalite tokenizer train --special_tokens '[{names}]'` adds them"
        )
    return [ids[token] for token in tokens]


def _blank_tokens(data: CorpusConfig, tokenizer: Tokenizer) -> BlankTokens:
    """Ids of the masks that have a weight, 0 for others, and of a span's start and end."""
    config = data.blank_infilling
    masks = (config.spans_token, config.sentences_token, config.document_token)
    used = [mask for mask, weight in zip(masks, config.weights, strict=True) if weight]
    needed = (*used, config.start_token, config.end_token)
    ids = dict(zip(needed, special_ids(needed, tokenizer, data.objective), strict=True))
    span, sentence, document_end = (ids.get(mask, 0) for mask in masks)
    start, end = ids[config.start_token], ids[config.end_token]
    return BlankTokens(span, sentence, document_end, start, end)


def sentence_ends(tokenizer: Tokenizer) -> Bool:
    """Which tokens end a sentence, by their text: bool [V]."""
    texts = tokenizer.token_texts()
    return np.array([text.rstrip(" ").endswith(SENTENCE_ENDS) for text in texts])


def _with_sentinels(data: CorpusConfig, tokenizer: Tokenizer, structure: Structure) -> Objective:
    """Span corruption or a mixture with it; checks that the longest example has its sentinels."""
    sentinels: list[int] = []
    while (number := tokenizer.find(SENTINEL.format(len(sentinels)))) is not None:
        sentinels.append(number)
    ids = np.array(sentinels, dtype=np.int64)
    if data.objective == "span_corruption":
        noise, span = data.span_corruption.noise, data.span_corruption.mean_span
        objective: Objective = SpanCorruption(structure, ids, tokenizer.end_id, noise, span)
        parts = [objective]
    else:
        denoisers = MIXTURES[data.objective]
        parts = [_denoiser(one, data, tokenizer, ids, structure) for one in denoisers]
        objective = Mixture(parts, [one.weight for one in denoisers])
    longest = longest_document(objective, Room(data.sequence_length, data.encoder_rows))
    needed = max(p.num_sentinels(longest) for p in parts if isinstance(p, SpanCorruption))
    if needed > len(ids):
        first, last = SENTINEL.format(len(ids)), SENTINEL.format(needed - 1)
        raise DataError(
            f"{tokenizer.path}: lacks {needed - len(ids)} special tokens of data.objective "
            f"{data.objective}: {first} to {last}, for documents of {longest} tokens; "
            f"`megalite tokenizer train --sentinels {needed}` adds them, or use shorter sequences"
        )
    return objective


def _denoiser(
    one: Denoiser, data: CorpusConfig, tokenizer: Tokenizer, sentinels: Int64, structure: Structure
) -> Objective:
    token = data.mixture.token(one.mode)
    opening = tuple(special_ids((token,), tokenizer, data.objective)) if token else ()
    if one.mode == "sequential":
        return PrefixLM(structure, None, min(1.0, 2 * one.noise), opening)
    end = tokenizer.end_id
    return SpanCorruption(structure, sentinels, end, one.noise, one.mean_span, opening)
