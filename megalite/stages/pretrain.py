"""Pretraining: token stores, next-token loss."""

import time
from collections.abc import Sequence
from functools import partial

import torch
from pydantic import Field

from megalite.data.config import ConversationConfig, CorpusConfig, TokenizerConfig
from megalite.data.example import collate
from megalite.data.loader import Loader, Share
from megalite.data.store import TokenStore
from megalite.data.windows import Blend, Windows
from megalite.errors import ConfigError, DataError
from megalite.models.batch import Batch
from megalite.models.build import Model
from megalite.models.outputs import Loss
from megalite.parallel.engine import Task, evaluate
from megalite.parallel.launch import Launch
from megalite.parallel.mesh import Mesh
from megalite.stages.conversation import SamplesConfig, open_chat, write_samples
from megalite.stages.setup import Stage, StageConfig, set_up
from megalite.training.trainer import Learner, reduce_metrics


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
    datasets = [windows(config.data.train, config.data, config.data.weights)]
    if config.data.heldout:
        datasets.append(windows(config.data.heldout, config.data))
    stage = set_up(config, launch)
    model = stage.model(config.model, config.checkpoint.start)
    trainer, (learner,) = stage.trainer(("model", model))
    trainer.resume()
    make = partial(rows, vocab_size=config.model.vocab_size)
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
        chat, structure = open_chat(config.tokenizer, ConversationConfig(), config.model)
        write_samples(stage, model, config.samples, chat, structure)
    return 0


def windows(paths: Sequence[str], data: CorpusConfig, weights: Sequence[float] = ()) -> Blend:
    """Samples of several stores, blended."""
    parts = [Windows(TokenStore(p), data.sequence_length, data.separate_documents) for p in paths]
    return Blend(parts, weights or [len(part) for part in parts])


def rows(examples: Sequence, sample_ids: Sequence[int], vocab_size: int = 0) -> Batch:
    """A micro-batch of examples of one length.

    Raises:
        DataError: a token is not below ``vocab_size`` (0: any).
    """
    batch = collate(examples, sample_ids)
    largest = int(batch.tokens.max())
    if vocab_size and largest >= vocab_size:
        raise DataError(
            f"--data: a store holds token {largest}, --model.vocab_size is {vocab_size}: raise it, "
            "or prepare the text with this model's tokenizer"
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


def heldout_batches(dataset, stage: Stage, make=rows) -> list[Batch]:
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
    losses = evaluate(model, batches, Loss())
    sums = {
        "loss": torch.stack(losses).sum(),
        "targets": torch.tensor(float(sum(b.num_targets for b in batches)), device=mesh.device),
    }
    total = reduce_metrics(sums, mesh)
    return total["loss"] / max(total["targets"], 1.0)
