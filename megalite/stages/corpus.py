"""Samples of token stores, and micro-batches of them, as a corpus section says."""

from collections.abc import Callable, Sequence

from megalite.config.amount import Measure, in_samples
from megalite.data.config import CorpusConfig, TokenizerConfig
from megalite.data.corpus.blend import Blend
from megalite.data.corpus.changing_blend import ChangingBlend
from megalite.data.corpus.packed_documents import PackedDocuments, Room
from megalite.data.corpus.store import TokenStore
from megalite.data.corpus.windows import Windows
from megalite.data.example import Example, collate
from megalite.data.loader import Dataset
from megalite.data.named_files import store_names
from megalite.data.objectives.choice import choose_objective
from megalite.data.split import PartOf, Split
from megalite.data.tokenizers.load import load_tokenizer
from megalite.errors import ConfigError, DataError
from megalite.models.batch import Batch
from megalite.models.config import ModelConfig
from megalite.seeds import fold
from megalite.stages.conversation import check_vocabulary, structure_of
from megalite.stages.positions import check_positions
from megalite.stages.special_tokens import NOTHING_SAID, SpecialTokens

OpenStore = Callable[[str, int], Dataset[Example]]


def store_opener(
    data: CorpusConfig,
    tokenizer: TokenizerConfig,
    model: ModelConfig,
    seed: int,
    said: SpecialTokens = NOTHING_SAID,
) -> OpenStore:
    """What opens a store, given its path and number, as samples of its objective.

    Next-token samples are windows of the text; other objectives' are documents, packed into rows.
    ``said`` is what the model's published config says.

    Raises:
        ConfigError: the model's structure can't have an objective, or there are more or fewer
            objectives than stores.
        DataError: the tokenizer lacks what an objective needs.
    """
    own = _own_objectives(data)
    is_alone = own and not (data.heldout or data.validation)
    names = dict.fromkeys((*own.values(), *(() if is_alone else (data.objective,))))

    def opener(name: str) -> OpenStore:
        told = data.model_copy(update={"objective": name})
        return _opener(told, tokenizer, model, seed, said)

    openers = {name: opener(name) for name in names}

    def opened(path: str, number: int) -> Dataset[Example]:
        return openers[own.get(path, data.objective)](path, number)

    return opened


def _own_objectives(data: CorpusConfig) -> dict[str, str]:
    """The objective of each store of what is learned; none where all have the same."""
    if not data.objectives:
        return {}
    stores = store_names(data.train)
    _check_count("data.objectives", data.objectives, stores)
    return dict(zip(stores, data.objectives, strict=True))


def _opener(
    data: CorpusConfig,
    tokenizer: TokenizerConfig,
    model: ModelConfig,
    seed: int,
    said: SpecialTokens,
) -> OpenStore:
    """What opens stores for ``data.objective``."""
    if data.objective == "next_token":
        if model.is_encoder_decoder:
            raise ConfigError(
                "--data.objective next_token: needs a decoder alone; an encoder-decoder has "
                "span_corruption, denoising, prefix_lm, ul2 and u_palm"
            )
        return lambda path, _number: Windows(
            TokenStore(path), data.sequence_length, data.separate_documents
        )
    found = load_tokenizer(**tokenizer.model_dump())
    check_vocabulary(found, model)
    objective = choose_objective(data, found, structure_of(data, found, model, said))
    room = Room(data.sequence_length, data.encoder_rows)
    return lambda path, number: PackedDocuments(
        TokenStore(path), objective, room, fold(seed, number)
    )


def blend_stores(
    open_store: OpenStore,
    paths: Sequence[str],
    weights: Sequence[float] = (),
    size_limit: int = 0,
) -> Blend:
    """The samples of several stores, blended by their weights, or without any by their sizes.

    Args:
        open_store: opens one.
        paths: of the stores.
        weights: of each; empty: by size.
        size_limit: samples that a store counts as at most then; 0: all.

    Raises:
        ConfigError: there are more or fewer weights than stores.
    """
    _check_count("data.weights", weights, paths)
    parts = [open_store(path, number) for number, path in enumerate(paths)]
    sizes = [min(len(part), size_limit or len(part)) for part in parts]
    return Blend(parts, weights or sizes)


def _check_count(key: str, told: Sequence[object], paths: Sequence[str]) -> None:
    if told and len(told) != len(paths):
        raise ConfigError(
            f"--{key}: must be one for each of the {len(paths)} stores, came {len(told)}"
        )


def settled_weights(data: CorpusConfig, measure: Measure, total: int) -> CorpusConfig:
    """The same with the places of ``weights_at`` in samples of a run of ``total``.

    Raises:
        ConfigError: there are more or fewer weights than stores, or places are not in order.
    """
    places, before = {}, 0
    for told, weights in data.weights_at.items():
        if data.train:  # a plan has none
            _check_count(f"data.weights_at {told!r}", weights, store_names(data.train))
        place = in_samples(measure.settled(told, "data.weights_at"), total)
        if place <= before:
            raise ConfigError(
                f"--data.weights_at {told!r}: is at sample {place:,}, and the weights before "
                f"begin at {before:,}: give them in order"
            )
        before = place
        places[f"{place} samples"] = weights
    return data.model_copy(update={"weights_at": places})


def learned(blend: Blend, data: CorpusConfig) -> Blend | ChangingBlend[Example]:
    """The samples of a run, by weights that may change; their places are settled."""
    later = [(in_samples(place, 0), weights) for place, weights in data.weights_at.items()]
    return blend.changing(later) if later else blend


def blend_parts(
    open_store: OpenStore, data: CorpusConfig, paths: Sequence[str], split: Split
) -> Blend:
    """A part of the samples of several stores; what is learned has the weights of ``data``."""

    def opened(path: str, number: int) -> Dataset[Example]:
        whole = open_store(path, number)
        return whole if split.part == "all" else PartOf(whole, split, path)

    is_learned = split.part != "heldout" and paths == store_names(data.train)
    weights = data.weights if is_learned else ()
    return blend_stores(opened, paths, weights, data.size_limit if is_learned else 0)


def check_corpus_positions(model: ModelConfig, data: CorpusConfig, section: str) -> None:
    """Refuse sequences that a learned table of positions is too short for.

    Args:
        model: shape of the model.
        data: the corpus section.
        section: its name.

    Raises:
        ConfigError: it names the key.
    """
    length, rows = data.sequence_length, data.encoder_rows
    check_positions(model, length, f"{section}.sequence_length {length}")
    if model.is_encoder_decoder:
        check_positions(model, rows, f"{section}.encoder_length {rows}")


def text_batch(
    examples: Sequence[Example], sample_ids: Sequence[int], data: CorpusConfig, model: ModelConfig
) -> Batch:
    """A micro-batch of samples; its rows have the lengths that ``data`` says.

    Raises:
        DataError: a token is not below the model's ``vocab_size``.
    """
    encoder = data.encoder_rows if model.is_encoder_decoder else 0
    batch = collate(examples, sample_ids, data.sequence_length, encoder)
    streams = (batch.decoder, batch.encoder)
    largest = max(int(stream.tokens.max()) for stream in streams if stream is not None)
    if largest >= model.vocab_size:
        raise DataError(
            f"--data: a store holds token {largest}, --model.vocab_size is {model.vocab_size}: "
            "raise it, or prepare the text with this model's tokenizer"
        )
    return batch
