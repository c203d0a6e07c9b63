"""PPO's parts together, on a real Hugging Face model and a reward that is easy to see."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from megalite.generation.prompts import Prompt
from megalite.models.outputs import LAST_ROW
from megalite.ops import AttentionOptions
from megalite.stages.rlhf.experience import Judgement, RewardConfig, gather_experience
from megalite.stages.rlhf.kl import KLConfig, adapt
from megalite.stages.rlhf.rollout import Judges, LocalModels, RolloutConfig, SpecialTokens, rollout
from megalite.stages.rlhf.updates import PolicyLoss, UpdateConfig, ValueLoss, mini_batches

VOCABULARY, TARGET, LENGTH, ROWS = 13, 5, 10, 48


def _actor():
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes))
    return model.eval()


def _log_probs(model, batch):
    log_probs = model(batch.decoder.tokens).logits.log_softmax(-1)
    labels = batch.labels.clamp(min=0)[..., None]
    entropy = -(log_probs.exp() * log_probs).sum(-1).detach()
    return log_probs.gather(-1, labels).squeeze(-1), entropy


def _count_targets(batch):
    """A reward model's values: targets of the answer up to and with each row."""
    answered = torch.arange(batch.decoder.tokens.shape[1]) >= 2
    return ((batch.decoder.tokens == TARGET) & answered).cumsum(1).float()


class Run:
    """A PPO run of a tiny actor; the score is the number of target tokens in the answer."""

    def __init__(self, updates: UpdateConfig, kl: KLConfig):
        self.actor = _actor()
        self.reference = copy.deepcopy(self.actor)
        self.critic = torch.nn.Linear(32, 1)
        torch.nn.init.zeros_(self.critic.weight)
        parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=3e-3, eps=1e-5)
        self.updates, self.kl, self.coefficient, self.step = updates, kl, kl.coefficient, 0

    def values(self, batch):
        hidden = self.reference.transformer(batch.decoder.tokens).last_hidden_state.detach()
        return self.critic(hidden).squeeze(-1)

    def decode(self, batch, cache, output=LAST_ROW):
        """Logits of the rows that are new, by the weights of the Hugging Face model."""
        body = self.actor.transformer
        x = body.wte.weight[batch.decoder.tokens] + body.wpe.weight[batch.decoder.positions.long()]
        for number, block in enumerate(body.h):
            qkv = block.attn.c_attn(block.ln_1(x)).chunk(3, -1)
            qkv = tuple(part.unflatten(-1, (2, -1)).contiguous() for part in qkv)
            mask, options = batch.decoder.mask, AttentionOptions()
            attended = cache.attend(str(number), qkv, mask, None, options)
            x = x + block.attn.c_proj(attended.flatten(2))
            x = x + block.mlp(block.ln_2(x))
        return self.actor.lm_head(body.ln_f(x))

    def rollout(self):
        ids = range(self.step * ROWS, (self.step + 1) * ROWS)
        prompts = [Prompt([1 + number % 4, 1]) for number in ids]
        judges = Judges(
            self.decode,
            lambda batch: _log_probs(self.actor, batch)[0],
            self.values,
            LocalModels(lambda batch: _log_probs(self.reference, batch)[0], [_count_targets]),
        )
        config = RolloutConfig(max_new_tokens=LENGTH, micro_batch_size=20)
        responses, judged = rollout(judges, prompts, ids, config, 11, SpecialTokens((), 0))
        experience, metrics = gather_experience(judged, RewardConfig(), self.coefficient)
        return responses.batch, experience, metrics

    def update(self):
        batch, experience, metrics = self.rollout()
        first = None
        for epoch in mini_batches(ROWS, self.updates, self.step):
            for index in epoch:
                rows, part = batch.select(index), experience.select(index)
                scale = 1 / int(part.mask.sum())
                loss, seen = PolicyLoss(self.updates.bounds, scale, scale)(
                    _log_probs(self.actor, rows), part
                )
                value_loss, _ = ValueLoss(self.updates.value_clip, scale)(self.values(rows), part)
                self.optimizer.zero_grad()
                (loss + 0.5 * value_loss).backward()
                self.optimizer.step()
                first = first or {name: float(value) for name, value in seen.items()}
        self.coefficient = adapt(self.kl, self.coefficient, float(metrics["kl"]), ROWS)
        self.step += 1
        return {name: float(value) for name, value in metrics.items()}, first


def test_the_first_update_of_a_run_starts_at_the_reference():
    metrics, first = Run(UpdateConfig(), KLConfig()).update()
    assert abs(metrics["kl"]) < 1e-4
    assert metrics["response_tokens"] == LENGTH
    assert first["ratio"] == pytest.approx(1, abs=1e-5)
    assert first["approximate_kl"] == pytest.approx(0, abs=1e-8)
    assert first["clip_fraction"] == 0
    assert first["policy_loss"] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_reward_rises_and_an_adaptive_coefficient_holds_the_kl_near_its_target():
    run = Run(
        UpdateConfig(epochs=2, mini_batches=2), KLConfig(coefficient=0.1, target=4.0, horizon=300)
    )
    history = [run.update()[0] for _ in range(120)]
    rewards = torch.tensor([metrics["reward"] for metrics in history])
    kls = torch.tensor([metrics["kl"] for metrics in history])
    assert rewards[-20:].mean() > rewards[:3].mean() + 2
    assert kls[-30:].mean() == pytest.approx(4.0, rel=0.15)


def test_each_pass_visits_every_row_once_in_a_new_order():
    config = UpdateConfig(epochs=3, mini_batches=4)
    passes = mini_batches(16, config, seed=5)
    assert [len(steps) for steps in passes] == [4, 4, 4]
    orders = [torch.cat(steps).tolist() for steps in passes]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert orders[0] != orders[1]
    again = [torch.cat(steps).tolist() for steps in mini_batches(16, config, seed=5)]
    assert orders == again


def test_scores_of_answers_without_an_end_are_replaced_and_clipped():
    mask = torch.tensor([[True, True], [True, False]])
    zeros = torch.zeros(2, 2)
    judged = Judgement(
        mask, zeros, zeros, zeros, torch.tensor([9.0, 3.0]), torch.tensor([True, False])
    )
    config = RewardConfig(score_limit=5.0, score_without_end=-1.0, discount=1.0, decay=1.0)
    experience, metrics = gather_experience(judged, config, 0.1)
    assert experience.returns.tolist() == [[5, 5], [-1, 0]]
    moved, _ = gather_experience(judged, config.model_copy(update={"bias": -6.0}), 0.1)
    assert moved.returns.tolist() == [[3, 3], [-1, 0]]
    assert float(metrics["reward"]) == 2
    assert float(metrics["ended"]) == 0.5


def test_whitened_scores_are_those_of_the_batch_and_the_reward_is_shown_as_it_is():
    mask, zeros, scores = torch.ones(4, 2, dtype=torch.bool), torch.zeros(4, 2), torch.arange(4.0)
    judged = Judgement(mask, zeros, zeros, zeros, scores, torch.ones(4, dtype=torch.bool))
    config = RewardConfig(whiten_scores=True, discount=1.0, decay=1.0)
    experience, metrics = gather_experience(judged, config, 0.1)
    white = (scores - scores.mean()) / scores.std(unbiased=False)
    torch.testing.assert_close(experience.returns, white[:, None].expand(4, 2))
    assert float(metrics["reward"]) == 1.5


def test_a_rollout_is_the_same_however_its_prompts_are_divided_and_judged():
    run = Run(UpdateConfig(), KLConfig())
    prompts = [Prompt([1 + number % 4, 1]) for number in range(6)]

    def judged(ids, micro_batch_size, **more):
        actor = lambda batch: _log_probs(run.actor, batch)[0]  # noqa: E731
        judges = Judges(run.decode, actor, run.values, LocalModels(actor, [_count_targets]))
        config = RolloutConfig(max_new_tokens=LENGTH, micro_batch_size=micro_batch_size, **more)
        chosen = [prompts[number] for number in ids]
        return rollout(judges, chosen, ids, config, 3, SpecialTokens((), 0))

    responses, whole = judged(range(6), 6)
    for ids in ([0, 2, 4], [1, 3, 5]):
        part, half = judged(ids, 2)
        assert torch.equal(part.batch.decoder.tokens, responses.batch.decoder.tokens[ids])
        assert torch.allclose(half.log_probs, whole.log_probs[ids], atol=1e-6)
        assert torch.equal(half.scores, whole.scores[ids])
    _, reused = judged(range(6), 6, slots=2, reuse_log_probs=True)
    assert torch.allclose(reused.log_probs[whole.mask], whole.log_probs[whole.mask], atol=1e-5)
    gaps = [gather_experience(x, RewardConfig(), 0.1)[1]["rollout_gap"] for x in (whole, reused)]
    assert 0 < float(gaps[0]) < 1e-5
    assert float(gaps[1]) == 0
