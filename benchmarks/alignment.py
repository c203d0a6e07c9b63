"""One step of PPO, GRPO and DPO beside TRL's trainers, and of LoRA beside PEFT, on real lengths.

    python -m benchmarks.alignment [--row dpo] [--pairs 8] [--prompts 64] [--json]

PPO's and GRPO's rows are :mod:`benchmarks.policies`, LoRA's :mod:`benchmarks.adapters`. In DPO's
both have fp32 parameters, stored log-probabilities of the reference, the same pairs, clipping of
the global norm and PyTorch's fused AdamW. Ours puts the answers of a micro-batch side by side in
one sequence; TRL pads them to the longest. TRL is installed below runs/peers; where it can't be,
or with --plain, the peer is the same step written plainly on transformers.
"""

import argparse
import math
import sys
import tempfile
from functools import partial

import numpy as np
import torch

from benchmarks import adapters, plain_policies, policies
from benchmarks.conversations import ANSWER, LONGEST, QUESTION, SIGMA
from benchmarks.duel import Side, play, serve
from benchmarks.models import CASES, VOCABULARY
from benchmarks.peers import NoPeer, interpreter
from benchmarks.result import Result, show

PAIRS, MICRO, SEED, ROUNDS, RATE, BETA = 8, 4, 0, 3, 1e-6, 0.1
Pair = tuple[list[int], list[int], list[int]]  # prompt, better answer, worse answer


def pairs(count: int) -> list[Pair]:
    """Random tokens in lengths of real conversations; see :mod:`benchmarks.conversations`."""
    draw = np.random.default_rng(SEED)

    def tokens(mean: float, most: int) -> list[int]:
        length = int(np.clip(draw.lognormal(math.log(mean) - SIGMA**2 / 2, SIGMA), 2, most))
        return draw.integers(2, VOCABULARY, length).tolist()

    made = []
    for _ in range(count):
        prompt = tokens(QUESTION, LONGEST // 2)
        made.append((prompt, *(tokens(ANSWER, LONGEST - len(prompt)) for _ in range(2))))
    return made


def make_ours(count: int):
    """Our step: the stage's own learner."""
    from megalite.data.chat.preferences import Comparison
    from megalite.data.example import decoder_example
    from megalite.distributed.mesh import Mesh, ParallelConfig
    from megalite.engine.build import build_model
    from megalite.models.batch import IGNORE
    from megalite.stages.preferences.config import PreferenceLossConfig
    from megalite.stages.preferences.objective import Comparisons
    from megalite.stages.preferences.step import PreferenceLearner
    from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
    from megalite.training.learner import Learner, Learning

    def answer(prompt: list[int], text: list[int]):
        rows = np.array(prompt + text)
        labels = np.array([IGNORE] * len(prompt) + text)
        return decoder_example(rows[:-1], labels[1:])

    mesh = Mesh.single()
    model = build_model(CASES["llama"].ours(), mesh, ParallelConfig(), seed=SEED)
    train = TrainConfig(steps=1000, global_batch_size=count, micro_batch_size=MICRO)
    learning = Learning(train, OptimizerConfig(learning_rate=RATE), ScheduleConfig(), SEED)
    learns = PreferenceLearner(PreferenceLossConfig(beta=BETA), Learner(model, mesh, learning))
    told = np.full(2, -100.0, dtype=np.float32)
    items = [
        (Comparison([answer(prompt, text) for text in texts]), told)
        for prompt, *texts in pairs(count)
    ]
    work = [
        Comparisons.of(items[at : at + MICRO], list(range(at, at + MICRO)))
        for at in range(0, count, MICRO)
    ]

    def step() -> None:
        learns.step(work, 0)

    return step, {"rows": sum(item.answers.batch.labels.numel() for item in work)}


def make_trl(count: int):
    """TRL's step: its trainer's own batches, loss and backward pass."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    words = {f"t{number}": number for number in range(2, VOCABULARY)} | {"<unk>": 0, "</s>": 1}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    rows = [
        dict(zip(("prompt", "chosen", "rejected"), map(_text, pair), strict=True))
        for pair in pairs(count)
    ]
    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            folder,
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=count // MICRO,
            precompute_ref_log_probs=True,
            learning_rate=RATE,
            beta=BETA,
            max_length=None,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            optim="adamw_torch_fused",
        )
        trainer = DPOTrainer(
            CASES["llama"].peer(),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        batches = list(trainer.get_train_dataloader())
    trainer.current_gradient_accumulation_steps = len(batches)
    optimizer, model = trainer.create_optimizer(), trainer.model.train()

    def step() -> None:
        for inputs in batches:
            trainer.training_step(model, dict(inputs), num_items_in_batch=None)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, {"rows": sum(inputs["input_ids"].numel() for inputs in batches)}


def _text(tokens: list[int]) -> str:
    """Words, with a blank behind: TRL puts texts side by side."""
    return " ".join(f"t{token}" for token in tokens) + " "


def make_plain(count: int):
    """The step on transformers, as short as it can be: better and worse answers padded together."""
    torch.manual_seed(SEED)
    model = CASES["llama"].peer().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    made = pairs(count)
    batches = [_padded(made[at : at + MICRO]) for at in range(0, count, MICRO)]

    def step() -> None:
        for tokens, mask, learned in batches:
            logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1]
            chosen = logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
            sums = (chosen * learned[:, 1:]).sum(1) + 100.0  # of the reference: -100
            better, worse = sums.chunk(2)
            loss = -torch.nn.functional.logsigmoid(BETA * (better - worse)).mean()
            (loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, {"rows": sum(tokens.numel() for tokens, _, _ in batches)}


def _padded(part: list[Pair]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, attention mask and which tokens are learned; better answers first, then worse."""
    texts = [(p, w) for p, w, _ in part] + [(p, w) for p, _, w in part]
    length = max(len(prompt) + len(text) for prompt, text in texts)
    tokens, mask, learned = (torch.zeros(len(texts), length, dtype=torch.int64) for _ in range(3))
    for row, (prompt, text) in enumerate(texts):
        whole = len(prompt) + len(text)
        tokens[row, :whole] = torch.tensor(prompt + text)
        mask[row, :whole] = 1
        learned[row, len(prompt) : whole] = 1
    return tokens, mask, learned


SIDES = {
    "ours": make_ours,
    "trl": make_trl,
    "plain": make_plain,
    "our adapters": adapters.make_ours,
    "peft": adapters.make_peft,
    "our ppo": partial(policies.make_ours, method="ppo"),
    "our grpo": partial(policies.make_ours, method="grpo"),
    "trl ppo": policies.make_trl_ppo,
    "trl grpo": policies.make_trl_grpo,
    "plain ppo": partial(plain_policies.make_plain, method="ppo"),
    "plain grpo": partial(plain_policies.make_plain, method="grpo"),
}
ROWS = {"ppo": "our ppo", "grpo": "our grpo", "dpo": "ours", "lora": "our adapters"}  # our sides
TRL = {  # of a row: the peer's side, its name, and what is installed for it
    "ppo": ("trl ppo", "TRL PPOTrainer", policies.WITH_PPO),
    "grpo": ("trl grpo", "TRL GRPOTrainer", "trl"),
    "dpo": ("trl", "TRL DPOTrainer", "trl"),
}
PLAIN = {"ppo": "plain ppo", "grpo": "plain grpo", "dpo": "plain"}


def _peer(row: str, words: list[str], is_plain: bool) -> tuple[Side, str]:
    """The peer's side of a row, which has done its first round, and its name."""

    def side(name: str, python: str = sys.executable) -> Side:
        return Side("benchmarks.alignment", [*words, name], python)

    if row == "lora":
        return side("peft"), "PEFT"
    own, name, package = TRL[row]
    if not is_plain:
        try:
            return side(own, interpreter(package)), name
        except (NoPeer, SystemExit) as error:
            print(f"{name}: {error}: the peer is a plain loop on transformers", file=sys.stderr)
    return side(PLAIN[row]), "transformers, plain loop"


def _compare(row: str, count: int, rounds: int, is_plain: bool) -> Result:
    words = ["--pairs", str(count), "--side"]
    ours = Side("benchmarks.alignment", [*words, ROWS[row]])
    other, name = _peer(row, words, is_plain)
    play(ours, other, rounds)
    more = {
        "ours_rows": ours.facts["rows"],
        "peer_rows": other.facts["rows"],  # padding among them
        "ours_peak_gib": ours.facts["peak_bytes"] / 2**30,
        "peer_peak_gib": other.facts["peak_bytes"] / 2**30,
    }
    pairs = zip(ours.rounds, other.rounds, strict=True)
    more["ratio_of_turns"] = [theirs["seconds"] / mine["seconds"] for mine, theirs in pairs]
    return Result(f"{row} step", name, ours.best("seconds"), other.best("seconds"), more)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    help_of_pairs = f"or conversations of LoRA's row; a multiple of {MICRO}"
    parser.add_argument("--pairs", type=int, default=PAIRS, help=help_of_pairs)
    help_of_prompts = f"of PPO, or answers of GRPO; a multiple of {MICRO} and {policies.GROUP}"
    parser.add_argument("--prompts", type=int, default=policies.PROMPTS, help=help_of_prompts)
    parser.add_argument("--plain", action="store_true", help="plain loops in place of TRL")
    parser.add_argument("--row", choices=ROWS, help="one alone")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(lambda: SIDES[options.side](options.pairs))
        return
    for row in [options.row] if options.row else ROWS:
        count = options.prompts if row in ("ppo", "grpo") else options.pairs
        show(_compare(row, count, options.rounds, options.plain), options.json)


if __name__ == "__main__":
    main()
