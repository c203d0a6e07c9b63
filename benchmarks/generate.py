"""Answers drawn by ours and by Hugging Face's ``generate``: same model, prompts and lengths.

    python -m benchmarks.generate [--family llama] [--case batch] [--json]

Cases: ``batch`` is 32 prompts of 128 tokens, 64 new tokens each; ``mixed`` 64 prompts of 16 to 256
tokens whose answers have 8 to 128, lengths as those of a chat (log-normal); ``one`` a single prompt
of 128, 64 new tokens. Both draw at temperature 1 in fp32. An answer of ``mixed`` ends at its
length on both sides: there by a stopping criterion a row, here by ``limits``.

Beside seconds: the copies to the host that ours made of what is on the model's device, for a token
drawn in each row; and memory that answering takes at most, beyond what the process holds with its
model after a first round, against what ours says before the start: the cache, and what passes and
draws take beside it. What stays of the first round (buffers and code of libraries) is a figure of
its own.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.duel import Side, extra_bytes, play, serve
from benchmarks.result import Result, show

SEED, ROUNDS, SLOTS = 0, 5, 32


@dataclass(frozen=True)
class Load:
    """Prompts and how long their answers are.

    Attributes:
        prompts: tokens of each.
        answers: tokens of each one's answer.
    """

    prompts: Sequence[int]
    answers: Sequence[int]

    def tokens(self) -> list[list[int]]:
        """The prompts."""
        generator = torch.Generator().manual_seed(1)
        return [torch.randint(5, 32000, (n,), generator=generator).tolist() for n in self.prompts]


def _lengths(count: int, least: int, most: int, seed: int) -> list[int]:
    """Log-normal lengths, cut to [least, most]: the median is a third of the way in logarithms."""
    generator = torch.Generator().manual_seed(seed)
    middle = least * (most / least) ** 0.5
    drawn = middle * torch.exp(0.8 * torch.randn(count, generator=generator))
    return drawn.clamp(least, most).int().tolist()


LOADS: dict[str, Callable[[], Load]] = {
    "batch": lambda: Load([128] * 32, [64] * 32),
    "mixed": lambda: Load(_lengths(64, 16, 256, 2), _lengths(64, 8, 128, 3)),
    "one": lambda: Load([128], [64]),
}


def make_ours(family: str, case: str):
    """Our engine."""
    from benchmarks.models import CASES
    from megalite.distributed.mesh import Mesh, ParallelConfig
    from megalite.engine.build import build_model
    from megalite.generation.answer import Asked, answer
    from megalite.generation.generate import Ending
    from megalite.generation.prompts import Prompt
    from megalite.generation.sampling import SamplingConfig
    from megalite.stages.samples import decode_with

    of, load = CASES[family], LOADS[case]()
    model = build_model(of.ours(), Mesh.single(), ParallelConfig(), seed=SEED)
    rows = load.tokens()
    prompts = [Prompt(row) for row in rows]
    if of.is_encoder_decoder:
        prompts = [Prompt([0], encoder_tokens=row) for row in rows]
    config = SamplingConfig(max_new_tokens=max(load.answers), seed=SEED)
    asked = Asked(prompts, range(len(rows)), SLOTS, limits=load.answers)
    decode, room = decode_with(model), asked.room(config)

    def step() -> None:
        answers = answer(decode, asked, config, Ending(()))
        assert answers.lengths.tolist() == list(load.answers)

    return step, {
        "extra_bytes": extra_bytes(step),
        "copies": _copies(lambda: answer(decode, asked, config, Ending(()))),
        "steps": max(load.answers),
        "tokens": sum(load.answers),
        "cache_bytes": room.size_bytes(model.config, 4),
        "working_bytes": room.working_bytes(model.config, 4, config),
    }


def _copies(work: Callable[[], object]) -> int:
    """Tensors whose values the host read while it worked: what would be copies from a GPU."""
    count, originals = 0, {n: getattr(torch.Tensor, n) for n in ("tolist", "item", "cpu", "numpy")}
    originals |= {n: getattr(torch.Tensor, n) for n in ("__bool__", "__int__", "__float__")}

    def counted(original: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            return original(*arguments, **options)

        return call

    for name, original in originals.items():
        setattr(torch.Tensor, name, counted(original))
    try:
        work()
    finally:
        for name, original in originals.items():
            setattr(torch.Tensor, name, original)
    return count


def make_peer(family: str, case: str):
    """``transformers.generate``."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    from benchmarks.models import CASES

    of, load = CASES[family], LOADS[case]()
    torch.manual_seed(SEED)
    model = of.peer().eval()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    rows, longest = load.tokens(), max(load.prompts)
    before = [[0] * (0 if of.is_encoder_decoder else longest - len(row)) for row in rows]
    padded = [b + row for b, row in zip(before, rows, strict=True)]
    padded = [row + [0] * (longest - len(row)) for row in padded]
    tokens = torch.tensor(padded)
    given = 1 if of.is_encoder_decoder else longest
    wanted = torch.tensor(load.answers)

    class Ends(StoppingCriteria):
        def __call__(self, input_ids, scores, **more):
            return input_ids.shape[1] - given >= wanted

    def step() -> None:
        model.generate(
            tokens,
            attention_mask=(tokens != 0).long(),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            use_cache=True,
            max_new_tokens=max(load.answers),
            stopping_criteria=StoppingCriteriaList([Ends()]),
        )

    return step, {"extra_bytes": extra_bytes(step)}


def compare(family: str, case: str, ours: Side, peer: Side) -> Result:
    """The figures of one case."""
    facts = ours.facts
    more = {
        "tokens_per_s": facts["tokens"] / ours.best("seconds"),
        "copies_per_row_token": facts["copies"] / facts["steps"],
        "cache_mib": facts["cache_bytes"] / 2**20,
        "working_mib": facts["working_bytes"] / 2**20,
    }
    for name, side in (("ours", ours), ("peer", peer)):
        most, stays = side.facts["extra_bytes"]
        more |= {f"{name}_extra_mib": most / 2**20, f"{name}_first_round_mib": stays / 2**20}
    seconds = ours.best("seconds"), peer.best("seconds")
    return Result(f"generate {family} {case}", "transformers", *seconds, more)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="llama", help="llama, t5, gpt2, bloom, bart or all")
    parser.add_argument("--case", default="all", help="batch, mixed, one or all")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        make = {"ours": make_ours, "peer": make_peer}[options.side]
        serve(lambda: make(options.family, options.case))
        return
    families = ["llama", "t5"] if options.family == "all" else [options.family]
    for family in families:
        for case in LOADS if options.case == "all" else [options.case]:
            words = ["--family", family, "--case", case]
            sides = [Side("benchmarks.generate", ["--side", s, *words]) for s in ("ours", "peer")]
            play(*sides, options.rounds)
            show(compare(family, case, *sides), options.json)


if __name__ == "__main__":
    main()
