"""One optimizer step of ours and of Hugging Face transformers: same model, batch and AdamW.

    python -m benchmarks.train_step [--family llama] [--json]

Both hold fp32 parameters, clip the global norm and use PyTorch's fused AdamW. Memory is what each
process holds beyond its imports: ``held`` between steps, ``peak`` with activations.
"""

import argparse

import torch

from benchmarks.duel import Side, play, serve
from benchmarks.result import Result, show

BATCH, LENGTH, SEED = 2, 1024, 0
ROUNDS = 7


def make_ours(family: str):
    """Our step: the trainer's own learner."""
    from benchmarks.models import CASES
    from megalite.models.build import build_model
    from megalite.models.outputs import Loss
    from megalite.parallel.engine import Task
    from megalite.parallel.mesh import Mesh, ParallelConfig
    from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
    from megalite.training.trainer import Learner, Learning

    case = CASES[family]
    mesh = Mesh.single()
    model = build_model(case.ours(), mesh, ParallelConfig(), seed=SEED)
    train = TrainConfig(steps=1000, global_batch_size=BATCH, micro_batch_size=BATCH)
    learner = Learner(model, mesh, Learning(train, OptimizerConfig(), ScheduleConfig(), SEED))
    batch = case.batch(BATCH, LENGTH)

    def step() -> None:
        learner.step([(batch, None)], lambda scale: Task(Loss(scale)), batch.num_targets, 0)

    return step, {"parameters": sum(p.numel() for p in model.parameters())}


def make_peer(family: str):
    """The same step in transformers."""
    from benchmarks.models import CASES

    case = CASES[family]
    torch.manual_seed(SEED)
    model = case.peer().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    inputs = case.peer_inputs(BATCH, LENGTH)

    def step() -> None:
        model(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, {"parameters": sum(p.numel() for p in model.parameters())}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="llama", help="llama, gpt2, t5, bloom, bart or all")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(lambda: {"ours": make_ours, "peer": make_peer}[options.side](options.family))
        return
    from benchmarks.models import CASES

    for family in CASES if options.family == "all" else [options.family]:
        sides = [
            Side("benchmarks.train_step", ["--side", side, "--family", family])
            for side in ("ours", "peer")
        ]
        play(*sides, options.rounds)
        show(compare(family, *sides), options.json)


def compare(family: str, ours: Side, peer: Side) -> Result:
    """The figures of one family."""
    tokens, more = BATCH * LENGTH, {}
    for name, side in (("ours", ours), ("peer", peer)):
        parameters = side.facts["parameters"]
        more[f"{name}_tokens_per_s"] = tokens / side.best("seconds")
        more[f"{name}_peak_gib"] = side.most("peak_bytes") / 2**30
        more[f"{name}_held_bytes_per_parameter"] = side.most("held_bytes") / parameters
    seconds = ours.best("seconds"), peer.best("seconds")
    return Result(f"train_step {family}", "transformers", *seconds, more)


if __name__ == "__main__":
    main()
