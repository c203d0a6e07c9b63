"""One optimizer step of ours and of Hugging Face transformers: same model, batch and AdamW.

    python -m benchmarks.train_step [--family llama] [--json]

``--family sft`` is fine-tuning on conversations of real lengths: packed here, padded there.

Both hold fp32 parameters, clip the global norm and use PyTorch's fused AdamW. Memory is what each
process holds beyond its imports: ``held`` between steps, ``peak`` with activations.
"""

import argparse

import torch

from benchmarks.duel import Side, play, serve
from benchmarks.result import Result, show

BATCH, LENGTH, SEED = 2, 1024, 0
ROUNDS = 7


def cases() -> dict:
    """The plain models, and fine-tuning of LLaMA on conversations."""
    from benchmarks.conversations import ConversationCase
    from benchmarks.models import CASES

    llama = CASES["llama"]
    return CASES | {"sft": ConversationCase(llama.ours, llama.peer)}


def make_ours(family: str):
    """Our step: the trainer's own learner."""
    from megalite.distributed.mesh import Mesh, ParallelConfig
    from megalite.engine.build import build_model
    from megalite.engine.model import Task
    from megalite.models.outputs import Loss
    from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
    from megalite.training.learner import Learner, Learning

    case = cases()[family]
    mesh = Mesh.single()
    model = build_model(case.ours(), mesh, ParallelConfig(), seed=SEED)
    train = TrainConfig(steps=1000, global_batch_size=BATCH, micro_batch_size=BATCH)
    learner = Learner(model, mesh, Learning(train, OptimizerConfig(), ScheduleConfig(), SEED))
    batches = case.batches(BATCH, LENGTH)
    targets = sum(batch.num_targets for batch in batches)
    work = [(batch, None) for batch in batches]

    def step() -> None:
        learner.step(work, lambda scale: Task(Loss(scale)), targets, 0)

    parameters = sum(p.numel() for p in model.parameters())
    return step, {
        "parameters": parameters,
        "tokens": sum(b.decoder.tokens.numel() for b in batches),
    }


def make_peer(family: str):
    """The same step in transformers."""
    case = cases()[family]
    torch.manual_seed(SEED)
    model = case.peer().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    batches = case.peer_batches(BATCH, LENGTH)

    def step() -> None:
        for inputs in batches:
            (model(**inputs).loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    parameters = sum(p.numel() for p in model.parameters())
    rows = sum(inputs["input_ids"].numel() for inputs in batches)
    return step, {"parameters": parameters, "tokens": rows}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--family", default="llama", help="llama, gpt2, t5, bloom, bart, sft or all"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(lambda: {"ours": make_ours, "peer": make_peer}[options.side](options.family))
        return
    for family in cases() if options.family == "all" else [options.family]:
        sides = [
            Side("benchmarks.train_step", ["--side", side, "--family", family])
            for side in ("ours", "peer")
        ]
        play(*sides, options.rounds)
        show(compare(family, *sides), options.json)


def compare(family: str, ours: Side, peer: Side) -> Result:
    """The figures of one family."""
    more = {}
    for name, side in (("ours", ours), ("peer", peer)):
        parameters = side.facts["parameters"]
        more[f"{name}_rows"] = side.facts["tokens"]  # padding among them
        more[f"{name}_peak_gib"] = side.facts["peak_bytes"] / 2**30
        more[f"{name}_held_bytes_per_parameter"] = side.facts["held_bytes"] / parameters
    seconds = ours.best("seconds"), peer.best("seconds")
    return Result(f"train_step {family}", "transformers", *seconds, more)


if __name__ == "__main__":
    main()
