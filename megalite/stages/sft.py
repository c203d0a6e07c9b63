"""Supervised fine-tuning: conversations, of which the assistant's turns are learned."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from megalite.data.chat.datasets import Conversations
from megalite.data.chat.long_rows import RowRules
from megalite.data.chat.row_store import RowStores
from megalite.data.config import MixedConversationConfig
from megalite.data.example import collate
from megalite.data.named_files import row_files
from megalite.distributed.launch import Launch
from megalite.engine.model import Model
from megalite.errors import ConfigError
from megalite.stages.conversation import ChatFormat, open_chat
from megalite.stages.datasets import Datasets, evaluations, notes_of
from megalite.stages.language import LanguageConfig, heldout_evaluation, language_step
from megalite.stages.length import in_steps
from megalite.stages.mixture import ConversationMixture, mixture
from megalite.stages.positions import check_positions
from megalite.stages.samples import Samples, SamplesConfig, write_samples
from megalite.stages.setup import Stage, set_up, settled
from megalite.stages.start import said_by
from megalite.stages.told import notes_of_writing
from megalite.training.config import RunConfig

Sequences = Conversations | ConversationMixture


class SFTConfig(LanguageConfig):
    """A fine-tuning run."""

    stage: ClassVar[str] = "sft"
    run: RunConfig = RunConfig(folder="runs/sft")
    data: MixedConversationConfig = MixedConversationConfig()
    samples: SamplesConfig = SamplesConfig()

    def check_inputs(self) -> None:
        """See :class:`StageConfig`."""
        length = self.data.sequence_length
        check_positions(self.model, length, f"data.sequence_length {length}")


def run(config: SFTConfig, launch: Launch) -> int:
    """Fine-tune a model."""
    config = settled(config, launch)
    data, start = config.data, config.checkpoint.start
    if not data.train:
        raise ConfigError("--data.train: needs at least one file of conversations")
    chat_format = open_chat(config.tokenizer, data, config.model, said_by(start))

    def read(paths: Sequence[str], rules: RowRules, stores: RowStores) -> Sequences:
        chat, structure = chat_format.chat, chat_format.structure

        def opened(files: Sequence[str]) -> Conversations:
            return Conversations(files, chat, structure, rules, data.packed, stores)

        is_mixed = data.is_mixed and paths == row_files(data.train)[0]
        return mixture(data, opened) if is_mixed else opened(paths)

    datasets = Datasets.read_once(launch, data, config.run.seed, read)
    samples = Samples.read(config.samples, chat_format, config.model)
    config, length = in_steps(config, len(datasets.train))
    stage = set_up(config, launch)
    stage.say(length, chat_format.notes, notes_of_writing(data, start), notes_of(datasets))
    with stage.running():
        model = _train(config, stage, chat_format, datasets)
        write_samples(stage, model, samples)
    return 0


def _train(
    config: SFTConfig, stage: Stage, chat_format: ChatFormat, datasets: Datasets[Sequences]
) -> Model:
    model = stage.model(config.model, config.checkpoint.start, lora=config.lora)
    trainer, (learner,) = stage.trainer(("model", model))
    trainer.resume()
    is_fixed = config.data.packed or stage.mesh.pp.size > 1
    length = config.data.sequence_length if is_fixed else 0
    make = partial(
        collate,
        length=length,
        encoder_length=length if chat_format.structure.is_encoder_decoder else 0,
        pad_id=chat_format.chat.tokenizer.pad_id,
    )
    trainer.fit(
        partial(stage.loader, datasets.train, make),
        language_step(stage, learner, config),
        evaluations(datasets.heldout, lambda part: heldout_evaluation(stage, model, part, make)),
    )
    return model
