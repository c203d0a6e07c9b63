"""A step of PPO and of GRPO on transformers, as short as it can be: a peer where TRL can't run.

All answers are as long as they may be, so nothing of them is masked.
"""

import torch
from torch import Tensor

from benchmarks.policies import EPOCHS, GROUP, KL, MICRO, NEW, PAD, RATE, SEED, Side, prompts
from benchmarks.policies import scorer as make_scorer
from benchmarks.policies import writer as make_writer


class Plain:
    """The models of a step and what they do."""

    def __init__(self, count: int, method: str) -> None:
        """Make them for so many answers."""
        torch.manual_seed(SEED)
        self.is_ppo, self.count = method == "ppo", count
        each = 1 if self.is_ppo else GROUP
        asked = [prompt for prompt in prompts(count // each) for _ in range(each)]
        self.longest = max(map(len, asked))
        self.read = torch.tensor([[PAD] * (self.longest - len(p)) + p for p in asked])
        self.actor, self.reference = make_writer(), make_writer().eval()
        self.critic = make_scorer() if self.is_ppo else None
        self.reward = make_scorer().eval() if self.is_ppo else None
        self.learned = [*self.actor.parameters()]
        if self.critic is not None:
            self.learned += self.critic.parameters()
        self.optimizer = torch.optim.AdamW(self.learned, lr=RATE, fused=True)

    def log_probs(self, model, rows: Tensor) -> Tensor:
        """Of the answers' tokens, [B, NEW]."""
        found = model(input_ids=rows, attention_mask=rows != PAD, use_cache=False)
        logits = found.logits[:, self.longest - 1 : -1]
        return logits.log_softmax(-1).gather(2, rows[:, self.longest :, None])[..., 0]

    def values(self, model, rows: Tensor) -> Tensor:
        """Of the rows that answers' tokens are drawn from, and of the last one: [B, NEW + 1]."""
        hidden = model.model(input_ids=rows, attention_mask=rows != PAD, use_cache=False)[0]
        return model.score(hidden)[:, self.longest - 1 :, 0]

    @torch.no_grad()
    def rollout(self) -> list[Tensor]:
        """Rows, log-probabilities of actor and reference, advantages, values and returns."""
        drawn = {"do_sample": True, "top_k": 0, "min_new_tokens": NEW, "max_new_tokens": NEW}
        rows = self.actor.generate(input_ids=self.read, attention_mask=self.read != PAD, **drawn)
        old, base = (self.log_probs(model, rows) for model in (self.actor, self.reference))
        if not self.is_ppo:
            texts = [" ".join(map(str, row)) for row in rows[:, self.longest :].tolist()]
            scores = torch.tensor([max(1 - abs(len(t) - 100) / 100, 0.0) for t in texts])
            groups = scores.view(-1, GROUP)
            better = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
            return [rows, old, base, better.view(-1, 1).expand(-1, NEW), old, old]
        before, rewards = self.values(self.critic, rows)[:, :-1], KL * (base - old)
        rewards[:, -1] += self.values(self.reward, rows)[:, -1]
        last, found = torch.zeros(self.count), []
        for at in reversed(range(NEW)):
            later = before[:, at + 1] if at + 1 < NEW else 0.0
            last = rewards[:, at] + later - before[:, at] + 0.95 * last
            found.append(last)
        better = torch.stack(found[::-1], 1)
        white = (better - better.mean()) / (better.std() + 1e-8)
        return [rows, old, base, white, before, better + before]

    def loss(self, part: list[Tensor]) -> Tensor:
        """Of one micro-batch of a rollout: of GRPO with its KL, of PPO with the critic's."""
        rows, old, base, better, before, wanted = part
        now = self.log_probs(self.actor, rows)
        ratio = (now - old).exp()
        worst = torch.maximum(-better * ratio, -better * ratio.clamp(0.8, 1.2)).mean()
        if not self.is_ppo:
            return worst + KL * ((base - now).exp() - (base - now) - 1).mean()
        value = self.values(self.critic, rows)[:, :-1]
        near = before + (value - before).clamp(-0.2, 0.2)
        return worst + torch.maximum((value - wanted) ** 2, (near - wanted) ** 2).mean() / 2

    def step(self) -> None:
        """A rollout and its updates."""
        made = self.rollout()
        for _ in range(EPOCHS if self.is_ppo else 1):
            for chosen in torch.randperm(self.count).split(MICRO):
                (self.loss([tensor[chosen] for tensor in made]) * MICRO / self.count).backward()
            torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def make_plain(count: int, method: str) -> Side:
    """The step, and the rows that it reads."""
    plain = Plain(count, method)
    return plain.step, {"rows": count * (plain.longest + NEW)}
