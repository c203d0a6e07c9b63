"""Pretraining: token stores, and an objective that says what of them is learned."""

from functools import partial
from typing import ClassVar

from megalite.config.amount import Measure
from megalite.data.config import ConversationConfig, CorpusConfig
from megalite.data.corpus.blend import Blend
from megalite.distributed.launch import Launch
from megalite.engine.model import Model
from megalite.errors import ConfigError
from megalite.stages.conversation import open_chat
from megalite.stages.corpus import (
    blend_parts,
    check_corpus_positions,
    learned,
    settled_weights,
    store_opener,
    text_batch,
)
from megalite.stages.datasets import Datasets, evaluations
from megalite.stages.language import LanguageConfig, heldout_evaluation, language_step
from megalite.stages.length import in_steps
from megalite.stages.samples import Samples, SamplesConfig, write_samples
from megalite.stages.setup import Stage, set_up, settled
from megalite.stages.special_tokens import SpecialTokens
from megalite.stages.start import said_by
from megalite.training.config import RunConfig


class PretrainConfig(LanguageConfig):
    """A pretraining run."""

    stage: ClassVar[str] = "pretrain"
    run: RunConfig = RunConfig(folder="runs/pretrain")
    data: CorpusConfig = CorpusConfig()
    samples: SamplesConfig = SamplesConfig()

    def settled_in(self, measure: Measure, total: int) -> "PretrainConfig":
        """See :class:`StageConfig`."""
        return self.model_copy(update={"data": settled_weights(self.data, measure, total)})

    def check_inputs(self) -> None:
        """See :class:`StageConfig`."""
        check_corpus_positions(self.model, self.data, "data")


def run(config: PretrainConfig, launch: Launch) -> int:
    """Pretrain a model."""
    config = settled(config, launch)
    data = config.data
    if not data.train:
        raise ConfigError(
            "--data.train: needs at least one store; `megalite data prepare` makes it"
        )
    said = said_by(config.checkpoint.start)
    open_store = store_opener(data, config.tokenizer, config.model, config.run.seed, said)
    datasets = Datasets.of_stores(data, config.run.seed, partial(blend_parts, open_store, data))
    samples = _read_samples(config, said)
    config, length = in_steps(config, len(datasets.train), data.sequence_length)
    stage = set_up(config, launch)
    stage.say(length)
    with stage.running():
        model = _train(config, stage, datasets)
        write_samples(stage, model, samples)
    return 0


def _read_samples(config: PretrainConfig, said: SpecialTokens) -> Samples | None:
    """The prompts of the samples, laid out as the text is that the model learns."""
    if not config.samples.prompts:
        return None
    is_prefix = config.data.prefix and config.data.objective != "next_token"
    how = ConversationConfig(
        template="raw", prefix=is_prefix, decoder_start=config.data.decoder_start
    )
    chat_format = open_chat(config.tokenizer, how, config.model, said)
    return Samples.read(config.samples, chat_format, config.model)


def _train(config: PretrainConfig, stage: Stage, datasets: Datasets[Blend]) -> Model:
    model = stage.model(config.model, config.checkpoint.start, lora=config.lora)
    trainer, (learner,) = stage.trainer(("model", model))
    trainer.resume()
    make = partial(text_batch, data=config.data, model=config.model)
    trainer.fit(
        partial(stage.loader, learned(datasets.train, config.data), make),
        language_step(stage, learner, config),
        evaluations(datasets.heldout, lambda part: heldout_evaluation(stage, model, part, make)),
    )
    return model
