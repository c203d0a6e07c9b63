"""Pretraining text that the actor learns beside its answers (PPO-ptx).

Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megalite.config.section import named_at
from megalite.data.config import CorpusConfig
from megalite.data.corpus.blend import Blend
from megalite.data.example import Example
from megalite.data.named_files import store_names
from megalite.errors import ConfigError, DataError
from megalite.models.batch import Batch
from megalite.seeds import fold
from megalite.stages.corpus import blend_stores, store_opener, text_batch
from megalite.stages.rlhf.config import PolicyConfig
from megalite.stages.start import said_by


@dataclass(frozen=True)
class Text:
    """Samples of pretraining text, and micro-batches of them.

    Attributes:
        config: of the run.
        seed: of the order of samples.
        samples: by number.
    """

    config: PolicyConfig
    seed: int
    samples: Blend[Example]

    @classmethod
    def open(cls, config: PolicyConfig) -> "Text | None":
        """Open the stores, and try their first sample; None for a run without text.

        Raises:
            ConfigError: the model can't have the objective.
            DataError: there is no such store, or it is not of the model's vocabulary.
        """
        if not config.update.pretrain_coefficient:
            return None
        text, seed = config.pretraining, fold(config.run.seed, 2)
        try:
            said = said_by(config.checkpoint.start)
            open_store = store_opener(text, config.tokenizer, config.model, seed, said)
            opened = cls(
                config,
                seed,
                blend_stores(open_store, store_names(text.train), text.weights, text.size_limit),
            )
            opened.make([opened.samples[0]], [0])
        except (ConfigError, DataError) as error:
            told = named_at(str(error), CorpusConfig, "data", "pretraining")
            raise type(error)(told) from None
        return opened

    def make(self, examples: Sequence[Example], sample_ids: Sequence[int]) -> Batch:
        """A micro-batch of samples; see :func:`text_batch`."""
        return text_batch(examples, sample_ids, self.config.pretraining, self.config.model)
