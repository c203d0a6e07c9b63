"""A step of PPO as the stage does it against a short loop over single answers, without padding."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist

from megalite.data.config import ConversationConfig
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import ParallelConfig
from megalite.engine.build import build_model
from megalite.engine.model import Model
from megalite.errors import ConfigError
from megalite.generation.prompts import Prompt
from megalite.models.config import ModelConfig
from megalite.models.outputs import Logits, Values
from megalite.seeds import fold
from megalite.stages.length import in_steps
from megalite.stages.rlhf.answers import Answered
from megalite.stages.rlhf.config import PPOConfig
from megalite.stages.rlhf.experience import Experience
from megalite.stages.rlhf.kl import KLConfig
from megalite.stages.rlhf.losses import Clip
from megalite.stages.rlhf.models import ReferenceModels, TrainedModels
from megalite.stages.rlhf.responses import respond
from megalite.stages.rlhf.rollout import RolloutConfig, SpecialTokens
from megalite.stages.rlhf.step import PolicyStep
from megalite.stages.rlhf.updates import PolicyLoss, Pretraining, UpdateConfig, mini_batches
from megalite.stages.setup import set_up
from megalite.training.config import (
    CheckpointConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from megalite.training.progress import Progress

SHAPE = {"vocab_size": 23, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "ffn_size": 24}
TEMPERATURE, BETA, CLIP, VALUE_CLIP, DECAY, RATE = 0.7, 0.1, 0.02, 0.01, 0.95, 3e-3
ENDS = {0, 4, 8, 12}
PROMPTS = [Prompt([1 + n, *range(1, 1 + n % 4)]) for n in range(8)]


def config(folder, **more) -> PPOConfig:
    """Dropout is on in the model's config, and must be off in PPO."""
    return PPOConfig(
        run=RunConfig(folder=str(folder), trackers=(), device="cpu", threads=1),
        model=ModelConfig(**SHAPE, dropout=0.3, attention_dropout=0.3),
        train=TrainConfig(steps=4, global_batch_size=8, micro_batch_size=2),
        optimizer=OptimizerConfig(learning_rate=RATE, eps=1e-5, weight_decay=0.0),
        schedule=ScheduleConfig(kind="constant", warmup=0.0),
        rollout=RolloutConfig(max_new_tokens=6, temperature=TEMPERATURE, micro_batch_size=3),
        kl=KLConfig(coefficient=BETA),
        update=UpdateConfig(epochs=2, mini_batches=2, clip=CLIP, value_clip=VALUE_CLIP),
        **more,
    )


@dataclass
class Run:
    """The stage's own step, and all four models by what they are."""

    step: PolicyStep
    models: dict[str, Model]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The reference is not where the actor starts, so the KL counts."""
    folder = tmp_path_factory.mktemp("ppo")
    for name, head, seed in (("policy", "lm", 1), ("reward", "value", 2)):
        stage = set_up(config(folder / name), Launch())
        shape = ModelConfig(**SHAPE, head=head)
        model = build_model(shape, stage.mesh, ParallelConfig(), seed=seed)
        trainer, _ = stage.trainer(("model", model))
        trainer.save()
        trainer._checkpoints.wait()
    stage = set_up(config(folder / "run"), Launch())
    started = config(folder / "run", reward_model=str(folder / "reward"))
    start = started.checkpoint.model_copy(update={"start": str(folder / "policy")})
    started = started.model_copy(update={"checkpoint": start})
    trained = TrainedModels.build(stage, started)
    references = ReferenceModels.build(stage, started)
    with torch.no_grad():
        for parameter in references.reference.parameters():
            parameter.mul_(1.1)
    _, learners = stage.trainer(("actor", trained.actor), ("critic", trained.critic))
    frozen = references.judges(TEMPERATURE)
    step = PolicyStep(started, stage, trained, learners, frozen, SpecialTokens(ENDS, 22))
    learn = {"actor": trained.actor, "critic": trained.critic}
    judge = {"reference": references.reference, "reward": references.rewards[0]}
    yield Run(step, learn | judge)
    dist.destroy_process_group()


@dataclass
class Sample:
    """One answer as the reference sees it, each [answer tokens]."""

    number: int
    answer: list[int]
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


class Reference:
    """PPO written out for one answer at a time."""

    def __init__(self, models: dict[str, Model]) -> None:
        self.models = {kind: copy.deepcopy(model.parts[0]) for kind, model in models.items()}
        settings = {"lr": RATE, "betas": (0.9, 0.95), "eps": 1e-5, "weight_decay": 0.0}
        self.optimizers = [
            torch.optim.AdamW(list(self.models[kind].parameters()), **settings)
            for kind in ("actor", "critic")
        ]

    def ask(self, kind: str, number: int, answer: list[int], output):
        """What a model says of the rows that predict the answer, and of its last token."""
        batch = respond([PROMPTS[number]], [answer], [number]).batch
        out = self.models[kind](batch, output)[0]
        first = len(PROMPTS[number].tokens) - 1
        return out[first : first + len(answer)], out[-1]

    def log_probs(self, kind: str, number: int, answer: list[int]) -> torch.Tensor:
        logits, _ = self.ask(kind, number, answer, Logits())
        return (logits / TEMPERATURE).log_softmax(-1)[range(len(answer)), answer]

    @torch.no_grad()
    def judge(self, number: int, answer: list[int]) -> Sample:
        log_probs = self.log_probs("actor", number, answer)
        kl = log_probs - self.log_probs("reference", number, answer)
        values, _ = self.ask("critic", number, answer, Values())
        _, score = self.ask("reward", number, answer, Values())
        rewards = -BETA * kl
        rewards[-1] += score
        advantages, carried, following = torch.zeros(len(answer)), 0.0, 0.0
        for t in reversed(range(len(answer))):
            carried = rewards[t] + following - values[t] + DECAY * carried
            advantages[t], following = carried, values[t]
        self.kls.append(float(kl.sum()))
        self.scores.append(float(score))
        return Sample(number, answer, log_probs, values, advantages, advantages + values)

    def step(self, answers: list[list[int]], order) -> dict[str, float]:
        self.kls, self.scores = [], []
        samples = [self.judge(number, answer) for number, answer in enumerate(answers)]
        flat = torch.cat([sample.advantages for sample in samples])
        deviation = (flat.var(unbiased=False) + 1e-8).sqrt()
        for sample in samples:
            sample.advantages = (sample.advantages - flat.mean()) / deviation
        seen = [self.update([samples[i] for i in rows]) for epoch in order for rows in epoch]
        means = {name: sum(one[name] for one in seen) / len(seen) for name in seen[0]}
        self.first = seen[0]
        return means | {
            "kl": sum(self.kls) / len(samples),
            "reward": sum(self.scores) / len(samples),
        }

    def update(self, samples: list[Sample]) -> dict[str, float]:
        count, sums = (
            sum(len(sample.answer) for sample in samples),
            dict.fromkeys(
                ("policy_loss", "value_loss", "approximate_kl", "clip_fraction", "ratio"), 0.0
            ),
        )
        for sample in samples:
            new = self.log_probs("actor", sample.number, sample.answer)
            change = new - sample.log_probs
            ratio = change.exp()
            plain = -sample.advantages * ratio
            bounded = -sample.advantages * ratio.clamp(1 - CLIP, 1 + CLIP)
            policy = torch.maximum(plain, bounded).sum() / count
            values, _ = self.ask("critic", sample.number, sample.answer, Values())
            near = torch.clamp(values, sample.values - VALUE_CLIP, sample.values + VALUE_CLIP)
            errors = (values - sample.returns) ** 2, (near - sample.returns) ** 2
            value = 0.5 * torch.maximum(*errors).sum() / count
            (policy + value).backward()
            sums["policy_loss"] += float(policy)
            sums["value_loss"] += float(value)
            sums["approximate_kl"] += float(0.5 * (change**2).sum() / count)
            sums["clip_fraction"] += float((bounded > plain).sum() / count)
            sums["ratio"] += float(ratio.sum() / count)
        for kind, optimizer in zip(("actor", "critic"), self.optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_(list(self.models[kind].parameters()), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return sums


def answers_of(step: PolicyStep, number: int) -> list[list[int]]:
    """The answers that step ``number`` will draw."""
    batch, judged = step.roll(PROMPTS, range(8), fold(step.config.run.seed, number))
    rows = zip(batch.labels, judged.mask, strict=True)
    return [labels[mask].tolist() for labels, mask in rows]


def test_two_steps_are_those_of_a_loop_over_single_answers(run):
    """Rollout, penalty, GAE, whitening, clipping, mini-batches, accumulation, Adam: all at once."""
    reference, progress, step_config = Reference(run.models), Progress(), run.step.config
    halves = [(PROMPTS[:2], [0, 1]), (PROMPTS[2:4], [2, 3]), (PROMPTS[4:], [4, 5, 6, 7])]
    for number in range(2):
        answers = answers_of(run.step, number)
        assert len({len(answer) for answer in answers}) > 1
        assert all(ENDS.isdisjoint(answer[:-1]) for answer in answers)
        order = mini_batches(8, step_config.update, fold(step_config.run.seed, number, 1))
        assert [len(rows) for epoch in order for rows in epoch] == [4, 4, 4, 4]
        theirs = reference.step(answers, order)
        result = run.step(halves, progress)
        ours = result.metrics
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=2e-4, abs=2e-6), (number, name)
        if number == 0:
            assert reference.first["ratio"] == pytest.approx(1, abs=1e-6)
            assert reference.first["clip_fraction"] == 0
        assert ours["clip_fraction"] > 0
        assert abs(ours["kl"]) > 1e-3
        progress = progress.after_step(8, result.extra)
    for kind in ("actor", "critic"):
        mine, theirs_model = run.models[kind], reference.models[kind]
        for (name, a), b in zip(mine.named_parameters(), theirs_model.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-4), (kind, name)


def test_a_pass_of_eight_answers_is_two_updates_of_two_micro_batches(run):
    before = run.step.learners[0].updates
    batch, judged = run.step.roll(PROMPTS, range(8), 1)
    run.step([(PROMPTS, list(range(8)))], Progress(step=2))
    assert run.step.learners[0].updates - before == 2 * 2
    sequences = torch.arange(8.0)[:, None].expand(8, judged.mask.shape[1])
    answered = Answered(batch, Experience(judged.mask, *[sequences] * 6))
    order = mini_batches(8, run.step.config.update, 0)
    assert [len(epoch) for epoch in order] == [2, 2]
    for rows in order[0]:
        items, count = answered.micro_batches(rows, 2, torch.device("cpu"))
        assert count == int(judged.mask[rows].sum())
        assert [len(batch.decoder.tokens) for batch, _ in items] == [2, 2]
        assert [part.returns[:, 0].tolist() for _, part in items] == rows.view(2, 2).tolist()


def test_dropout_is_off_and_the_critic_starts_as_the_reward_model(run):
    for model in run.models.values():
        assert model.config.dropout == model.config.attention_dropout == 0
    stage, started = run.step.stage, run.step.config
    trained = TrainedModels.build(stage, started)
    references = ReferenceModels.build(stage, started)
    pairs = zip(trained.critic.parameters(), references.rewards[0].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(p.requires_grad for p in references.rewards[0].parameters())
    assert not any(p.requires_grad for p in references.reference.parameters())
    again = [trained.actor.evaluate([respond(PROMPTS[:1], [[1]], [0]).batch], Logits())[0]] * 2
    assert torch.equal(*again)


def test_the_critic_learns_alone_first_and_the_penalty_follows_its_course(run):
    """A step has 8 samples of a run of 32."""
    told = run.step.config.model_copy(
        update={
            "update": run.step.config.update.model_copy(update={"critic_alone": "1 step"}),
            "kl": KLConfig(coefficient={"0": 0.2, "to 2 steps": 0.1}),
        }
    )
    config, _ = in_steps(told, 8)
    step = replace(run.step, config=config)
    progress, items = Progress(), [(PROMPTS, list(range(8)))]
    moved, seen = [], []
    for _ in range(2):
        before = [p.detach().clone() for p in run.models["actor"].parameters()]
        seen.append(step(items, progress).metrics)
        after = run.models["actor"].parameters()
        moved.append(not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)))
        progress = progress.after_step(8, {})
    assert moved == [False, True]
    assert "policy_loss" not in seen[0]
    assert "policy_loss" in seen[1]
    assert all("value_loss" in metrics and "learning_rate" in metrics for metrics in seen)
    assert [metrics["kl_coefficient"] for metrics in seen] == pytest.approx([0.2, 0.15])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"coefficient": {"0": 0.1}, "target": 6.0}, "kl.coefficient says how that changes"),
        ({"coefficient": {"0": 0.1, "0.5": -0.1}}, "must not be negative"),
    ],
)
def test_a_penalty_that_changes_in_two_ways_is_refused(values, says):
    with pytest.raises(ConfigError, match=f"--kl.*{says}"):
        KLConfig(**values)


def test_losses_of_text_are_summed_as_log_probabilities_are():
    scale, log_probs = 0.3, torch.tensor([[-1.0, -2.0]])
    loss = PolicyLoss(Clip(0.2, 0.2), 1.0, 1.0)
    plain, _ = loss((log_probs, log_probs), Pretraining(scale))
    summed, metrics = loss(-log_probs.sum(), Pretraining(scale))
    assert plain == summed == metrics["pretraining_loss"]


def test_a_loss_of_text_without_text_is_refused():
    with pytest.raises(ConfigError, match="--max_z_loss 0.1: is of the pretraining text"):
        settings = {"checkpoint": CheckpointConfig(start="a"), "reward_model": "b"}
        data = ConversationConfig(train=("c",))
        PPOConfig(**settings, data=data, max_z_loss=0.1).check_sources()
