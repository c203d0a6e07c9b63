"""Every objective with every structure that has it, over a vocabulary of numbers."""

import numpy as np
from hypothesis import strategies as st

from megalite.data.objectives.blank_infilling import (
    BlankInfilling,
    BlankInfillingConfig,
    BlankTokens,
)
from megalite.data.objectives.denoising import Denoising, DenoisingConfig
from megalite.data.objectives.mixture import Mixture
from megalite.data.objectives.prefix_lm import PrefixLM
from megalite.data.objectives.span_corruption import SpanCorruption
from megalite.data.structure import AnswerBlank, Structure

END, FULL_STOP, START, MASK = 1, 2, 3, 4
BLANKS = BlankTokens(MASK, 5, 6, 7, 8)
MODE = 9
FIRST_WORD, VOCABULARY = 10, 131
SENTINELS = VOCABULARY - 1 - np.arange(60)
LAST_WORD = VOCABULARY - 61
IS_END = np.arange(VOCABULARY) == FULL_STOP

STRUCTURES = {
    "encoder-decoder": Structure(True, False, START),
    "causal": Structure(),
    "prefix": Structure(is_prefix=True),
    "glm": Structure(is_prefix=True, blank=AnswerBlank(BLANKS.document_end, BLANKS.start), axes=2),
}


def span_corruption(structure: Structure, noise: float = 0.15, mean: float = 3.0, opening=()):
    return SpanCorruption(structure, SENTINELS, END, noise, mean, opening)


def mixture(structure: Structure) -> Mixture:
    parts = (
        span_corruption(structure, 0.5, 3.0, (MODE,)),
        PrefixLM(structure, None, 0.5, (MODE,)),
        span_corruption(structure, 0.15, 3.0, (MODE,)),
    )
    return Mixture(parts, (1, 2, 1))


PAIRED = {
    "prefix_lm": lambda structure: PrefixLM(structure),
    "prefix_lm split": lambda structure: PrefixLM(structure, FULL_STOP),
    "span_corruption": span_corruption,
    "span_corruption extreme": lambda structure: span_corruption(structure, 0.5, 8.0, (MODE,)),
    "mixture": mixture,
}
NOISES = {
    "bart": DenoisingConfig(),
    "infill": DenoisingConfig(infill=0.5, permute=0.0),
    "permute": DenoisingConfig(infill=0.0),
    "mask": DenoisingConfig(infill=0.0, permute=0.0, mask=0.3),
    "delete": DenoisingConfig(infill=0.0, permute=0.0, delete=0.3),
    "rotate": DenoisingConfig(infill=0.0, permute=0.0, rotate=1.0),
}
ALL_BLANKS = {
    "spans": BlankInfillingConfig(spans_weight=1, document_weight=0),
    "sentences": BlankInfillingConfig(spans_weight=0, document_weight=0, sentences_weight=1),
    "document": BlankInfillingConfig(spans_weight=0, document_weight=1),
    "glm-130b": BlankInfillingConfig(),
}


def denoising(noise: str) -> Denoising:
    return Denoising(STRUCTURES["encoder-decoder"], NOISES[noise], MASK, IS_END, END)


def blank_infilling(blanks: str, structure: str = "glm") -> BlankInfilling:
    return BlankInfilling(STRUCTURES[structure], ALL_BLANKS[blanks], BLANKS, IS_END, END)


def all_objectives() -> dict:
    """(objective, structure) by a name that says both."""
    cases = {
        f"{name}, {kind}": (make(structure), structure)
        for name, make in PAIRED.items()
        for kind, structure in STRUCTURES.items()
    }
    encoder_decoder = STRUCTURES["encoder-decoder"]
    cases |= {f"denoising {noise}": (denoising(noise), encoder_decoder) for noise in NOISES}
    for blanks in ALL_BLANKS:
        for kind in ("glm", "prefix", "causal"):
            cases[f"{blanks} blanks, {kind}"] = (blank_infilling(blanks, kind), STRUCTURES[kind])
    return cases


OBJECTIVES = all_objectives()

WORDS = st.integers(FIRST_WORD, LAST_WORD - 1)
DOCUMENTS = st.tuples(
    st.lists(st.one_of(WORDS, st.just(FULL_STOP)), min_size=2, max_size=90), st.booleans()
).map(lambda parts: np.array(parts[0] + [END] * parts[1]))
SEEDS = st.integers(0, 2**32)


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def body(document: np.ndarray) -> list[int]:
    """A document without its end token."""
    tokens = document.tolist()
    return tokens[:-1] if len(tokens) > 1 and tokens[-1] == END else tokens


def source_and_target(example, structure: Structure) -> tuple[list[int], list[int]]:
    """What is read and what is learned; the labels follow the tokens that they are shifted from."""
    learned = example.labels != -100
    target = example.labels[learned].tolist()
    assert learned[int(learned.argmax()) :].all()
    assert example.decoder.tokens[1:][learned[:-1]].tolist() == target[:-1]
    if structure.is_encoder_decoder:
        assert learned.all()
        assert example.decoder.tokens[0] == structure.start_id
        return example.encoder.tokens.tolist(), target
    lead = example.decoder.tokens[: int(learned.argmax()) + 1].tolist()
    if structure.blank is None:
        return lead, target
    assert lead[-2:] == [structure.blank.mask_id, structure.blank.start_id]
    return lead[:-2], target
