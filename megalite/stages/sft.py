"""Supervised fine-tuning: conversations, of which the assistant's turns are learned."""

from functools import partial

from megalite.data.chat.datasets import Conversations
from megalite.data.chat.templates import Chat
from megalite.data.config import ConversationConfig, TokenizerConfig
from megalite.data.example import collate
from megalite.data.loader import Loader
from megalite.data.structure import Structure
from megalite.distributed.launch import Launch
from megalite.errors import ConfigError
from megalite.stages.conversation import SamplesConfig, open_chat, share_of, write_samples
from megalite.stages.pretrain import heldout_batches, heldout_loss, language_step
from megalite.stages.setup import Stage, StageConfig, set_up


class SFTConfig(StageConfig):
    """A fine-tuning run."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    data: ConversationConfig = ConversationConfig()
    samples: SamplesConfig = SamplesConfig()


def run(config: SFTConfig, launch: Launch) -> int:
    """Fine-tune a model."""
    data = config.data
    if not data.train:
        raise ConfigError("--data.train: needs at least one file of conversations")
    chat, structure = open_chat(config.tokenizer, data, config.model)
    options = (chat, structure, data.sequence_length, data.packed)
    train = Conversations(data.train, *options)
    heldout = Conversations(data.heldout, *options) if data.heldout else None
    stage = set_up(config, launch)
    with stage.watchdog:
        return _train(config, stage, (chat, structure), (train, heldout))


def _train(
    config: SFTConfig,
    stage: Stage,
    language: tuple[Chat, Structure],
    datasets: tuple[Conversations, Conversations | None],
) -> int:
    (chat, structure), (train, heldout), data = language, datasets, config.data
    model = stage.model(config.model, config.checkpoint.start)
    trainer, (learner,) = stage.trainer(("model", model))
    trainer.resume()
    is_fixed = data.packed or stage.mesh.pp.size > 1
    length = data.sequence_length if is_fixed else 0
    both = length if structure.is_encoder_decoder else 0
    make = partial(collate, length=length, encoder_length=both, pad_id=chat.tokenizer.pad_id)
    loader = Loader(
        train,
        make,
        share_of(config.train, stage.mesh),
        seed=config.run.seed,
        consumed_samples=trainer.progress.consumed_samples,
    )
    evaluate = None
    if heldout is not None:
        batches = heldout_batches(heldout, stage, make)

        def evaluate() -> dict[str, float]:
            return {"heldout_loss": heldout_loss(model, batches, stage.mesh)}

    trainer.fit(loader, language_step(stage, learner, trainer), evaluate)
    write_samples(stage, model, config.samples, chat, structure)
    return 0
