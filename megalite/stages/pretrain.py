"""Pretraining: token stores, and an objective that says what of them is learned."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from pydantic import Field

from megalite.data.config import ConversationConfig, CorpusConfig, TokenizerConfig
from megalite.data.corpus.blend import Blend
from megalite.data.corpus.packed_documents import PackedDocuments, Room
from megalite.data.corpus.store import TokenStore
from megalite.data.corpus.windows import Windows
from megalite.data.example import collate
from megalite.data.loader import Loader, Share
from megalite.data.objectives.choice import choose_objective
from megalite.data.tokenizers.load import load_tokenizer
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh
from megalite.distributed.sums import sum_metrics
from megalite.engine.model import Model, Task
from megalite.errors import ConfigError, DataError
from megalite.models.batch import Batch
from megalite.models.config import ModelConfig
from megalite.models.outputs import Loss
from megalite.ops.random import fold
from megalite.stages.conversation import (
    SamplesConfig,
    check_vocabulary,
    open_chat,
    structure_of,
    write_samples,
)
from megalite.stages.setup import Stage, StageConfig, set_up
from megalite.training.trainer import Learner


class PretrainConfig(StageConfig):
    """A pretraining run."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    data: CorpusConfig = CorpusConfig()
    samples: SamplesConfig = SamplesConfig()
    z_loss: float = Field(0.0, ge=0, description="factor of the squared log-sum of exponentials")


def run(config: PretrainConfig, launch: Launch) -> int:
    """Pretrain a model."""
    if not config.data.train:
        raise ConfigError(
            "--data.train: needs at least one store; `megalite data prepare` makes it"
        )
    samples = samples_of(config.data, config.tokenizer, config.model, config.run.seed)
    datasets = [samples(config.data.train, config.data.weights)]
    if config.data.heldout:
        datasets.append(samples(config.data.heldout))
    stage = set_up(config, launch)
    with stage.watchdog:
        return _train(config, stage, datasets)


def _train(config: PretrainConfig, stage: Stage, datasets: list[Blend]) -> int:
    model = stage.model(config.model, config.checkpoint.start)
    trainer, (learner,) = stage.trainer(("model", model))
    trainer.resume()
    make = partial(rows, data=config.data, model=config.model)
    share = Share(
        config.train.global_batch_size,
        config.train.micro_batch_size,
        stage.mesh.dp.rank,
        stage.mesh.dp.size,
    )
    loader = Loader(
        datasets[0],
        make,
        share,
        seed=config.run.seed,
        consumed_samples=trainer.progress.consumed_samples,
    )
    heldout = None
    if len(datasets) > 1:
        batches = heldout_batches(datasets[1], stage, make)

        def heldout() -> dict[str, float]:
            return {"heldout_loss": heldout_loss(model, batches, stage.mesh)}

    trainer.fit(loader, language_step(stage, learner, trainer, config.z_loss), heldout)
    if config.samples.prompts:
        is_prefix = config.data.prefix and config.data.objective != "next_token"
        how = ConversationConfig(prefix=is_prefix, decoder_start=config.data.decoder_start)
        chat, structure = open_chat(config.tokenizer, how, config.model)
        write_samples(stage, model, config.samples, chat, structure)
    return 0


def samples_of(
    data: CorpusConfig, tokenizer: TokenizerConfig, model: ModelConfig, seed: int
) -> Callable[..., Blend]:
    """What makes samples of stores (and weights), blended.

    Next-token samples are windows of the text; other objectives' are documents, packed into rows.

    Raises:
        ConfigError: the model's structure can't have the objective.
        DataError: the tokenizer lacks what the objective needs.
    """
    if data.objective == "next_token":
        if model.is_encoder_decoder:
            raise ConfigError(
                "--data.objective next_token: needs a decoder alone; an encoder-decoder has "
                "span_corruption, denoising, prefix_lm, ul2 and u_palm"
            )

        def dataset(path: str, number: int) -> Windows | PackedDocuments:
            return Windows(TokenStore(path), data.sequence_length, data.separate_documents)
    else:
        found = load_tokenizer(tokenizer.path)
        check_vocabulary(found, model)
        objective = choose_objective(data, found, structure_of(data, found, model))
        room = Room(data.sequence_length, data.encoder_rows)

        def dataset(path: str, number: int) -> Windows | PackedDocuments:
            return PackedDocuments(TokenStore(path), objective, room, fold(seed, number))

    def blended(paths: Sequence[str], weights: Sequence[float] = ()) -> Blend:
        parts = [dataset(path, number) for number, path in enumerate(paths)]
        return Blend(parts, weights or [len(part) for part in parts])

    return blended


def rows(
    examples: Sequence, sample_ids: Sequence[int], data: CorpusConfig, model: ModelConfig
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


def language_step(stage: Stage, learner: Learner, trainer, z_loss: float = 0.0):
    """A step of the next-token loss over a step's micro-batches."""

    def work(batches: list[Batch]) -> dict[str, float]:
        started = time.perf_counter()
        count = sum(batch.num_targets for batch in batches)
        metrics = learner.step(
            [(batch, None) for batch in batches],
            lambda scale: Task(Loss(scale, z_loss=z_loss)),
            count,
            trainer.progress.consumed_samples,
        )
        return metrics | stage.speed.measure(batches, time.perf_counter() - started)

    return work


def heldout_batches(dataset, stage: Stage, make: Callable[..., Batch]) -> list[Batch]:
    """This rank's held-out micro-batches: the same samples at every evaluation.

    Samples are taken evenly over the data; their number is rounded up to fill all ranks' batches.
    """
    train, dp = stage.config.train, stage.mesh.dp
    unit = train.micro_batch_size * dp.size
    wanted = min(train.evaluate_samples, len(dataset))
    count = -(-wanted // unit) * unit
    numbers = [i * len(dataset) // count for i in range(count)]
    own = numbers[dp.rank :: dp.size]
    size = train.micro_batch_size
    parts = [own[at : at + size] for at in range(0, len(own), size)]
    return [make([dataset[n] for n in part], part).to(stage.mesh.device) for part in parts]


def heldout_loss(model: Model, batches: Sequence[Batch], mesh: Mesh) -> float:
    """Mean loss a target over held-out batches, in nats. Comm: all-reduce over dp."""
    losses = model.evaluate(batches, Loss())
    sums = {
        "loss": torch.stack(losses).sum(),
        "targets": torch.tensor(float(sum(b.num_targets for b in batches)), device=mesh.device),
    }
    total = sum_metrics(sums, mesh.dp)
    return total["loss"] / max(total["targets"], 1.0)
