"""A step of each optimizer, ours and PyTorch's, on the model of ``benchmarks.train_step``.

    python -m benchmarks.optimizers [--family llama] [--products fp32] [--rounds 7] [--json]

The sides take turns on gradients that are there already; memory is what an optimizer holds beside
parameters and gradients, in bytes a parameter. Lion is not in PyTorch; its Muon takes matrices
alone, so AdamW stands beside it for the rest, as here. The last rows are of whole training steps:
what Muon's orthogonalisation takes of one, in time, in the processors' time and in floating-point
operations.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.duel import Side, play, serve
from benchmarks.models import CASES
from benchmarks.result import Result, show

BATCH, LENGTH, SEED, ROUNDS = 2, 1024, 0, 7
KINDS = ("adamw", "adafactor", "lion", "muon")
RATE, DECAY = 3e-4, 0.1


def built(family: str):
    """The model with a gradient for each parameter."""
    from megalite.distributed.mesh import Mesh, ParallelConfig
    from megalite.engine.build import build_model

    model = build_model(CASES[family].ours(), Mesh.single(), ParallelConfig(), seed=SEED)
    generator = torch.Generator().manual_seed(SEED)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-3
    return model


def state_bytes(states: list[dict]) -> int:
    """Bytes of the tensors that optimizers keep."""
    tensors = [t for state in states for t in state.values() if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def ours(family: str, kind: str) -> tuple[Callable[[], None], dict]:
    """A step of ours."""
    from megalite.training.config import OptimizerConfig
    from megalite.training.optimizer import build_optimizer, step_unless

    model = built(family)
    optimizer = build_optimizer(model, OptimizerConfig(kind=kind, learning_rate=RATE))
    bad = torch.tensor(False)
    return lambda: step_unless(optimizer, bad), facts_of(model, [optimizer])


def facts_of(model, optimizers: list) -> dict:
    """Bytes a parameter of the state."""
    count = sum(parameter.numel() for parameter in model.parameters())
    states = [state for one in optimizers for state in one.state.values()]
    return {"parameters": count, "state_bytes": state_bytes(states)}


def peer(family: str, kind: str) -> tuple[Callable[[], None], dict]:
    """A step of PyTorch's optimizers of this kind over the same parameters."""
    model = built(family)
    optimizers = peer_optimizers(dict(model.named_parameters()), kind)

    def step() -> None:
        for optimizer in optimizers:
            optimizer.step()

    step()  # it makes its state in the first one
    return step, facts_of(model, optimizers)


def peer_optimizers(named: dict[str, nn.Parameter], kind: str) -> list[torch.optim.Optimizer]:
    """PyTorch's; its Muon reads matrices of two dimensions, so it gets ours in that shape."""
    if kind == "adafactor":
        return [torch.optim.Adafactor(flat(named.values()), lr=RATE, weight_decay=DECAY)]
    if kind == "adamw":
        return [torch.optim.AdamW(named.values(), lr=RATE, weight_decay=DECAY, fused=True)]
    hidden = [p for name, p in named.items() if ".layers." in name and p.dim() > 1]
    chosen = {id(p) for p in hidden}
    rest = [p for p in named.values() if id(p) not in chosen]
    muon = torch.optim.Muon(
        flat(hidden), lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(rest, lr=RATE, weight_decay=DECAY, fused=True)]


def flat(parameters) -> list[nn.Parameter]:
    """Parameters as matrices [first dimension, all else], with their gradients."""
    made = []
    for parameter in parameters:
        rows = parameter.shape[0] if parameter.dim() > 1 else parameter.shape
        other = nn.Parameter(
            parameter.detach().view(rows, -1) if parameter.dim() > 1 else parameter
        )
        other.grad = parameter.grad.view(other.shape)
        made.append(other)
    return made


def whole_step(family: str, products: str) -> tuple[Callable[[], None], dict]:
    """A training step with Muon, whose products have this number format."""
    from megalite.distributed.mesh import Mesh, ParallelConfig
    from megalite.engine.build import build_model
    from megalite.engine.model import Task
    from megalite.models.outputs import Loss
    from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
    from megalite.training.learner import Learner, Learning

    case, mesh = CASES[family], Mesh.single()
    model = build_model(case.ours(), mesh, ParallelConfig(), seed=SEED)
    train = TrainConfig(steps=1000, global_batch_size=BATCH, micro_batch_size=BATCH)
    settings = OptimizerConfig(kind="muon", muon={"products": products})
    learner = Learner(model, mesh, Learning(train, settings, ScheduleConfig(), SEED))
    work = [(batch, None) for batch in case.batches(BATCH, LENGTH)]
    targets = sum(batch.num_targets for batch, _ in work)

    def step() -> None:
        learner.step(work, lambda scale: Task(Loss(scale)), targets, 0)

    return step, {}


def hidden_sides(model) -> list[tuple[int, int]]:
    """Rows and columns of the matrices that Muon orthogonalises."""
    from megalite.training.updates.muon import sides_of
    from megalite.training.updates.rule import weights_of

    return [sides_of(weight) for weight in weights_of(model) if weight.is_hidden]


def orthogonal(family: str, products: str) -> tuple[Callable[[], None], dict]:
    """The orthogonalisation of a step's matrices alone."""
    from megalite.training.config import OptimizerConfig
    from megalite.training.updates.muon import product_dtype
    from megalite.training.updates.orthogonal import operations, orthogonalised

    sides = hidden_sides(built(family))
    muon = OptimizerConfig(muon={"products": products}).muon
    dtype = product_dtype(muon.products, torch.device("cpu"))
    matrices = [torch.randn(shape).to(dtype) for shape in sides]

    def work() -> None:
        for matrix in matrices:
            orthogonalised(matrix, muon.iterations)

    return work, {"flop": sum(operations(*shape, muon.iterations) for shape in sides)}


OPTIMIZERS = {"ours": ours, "peer": peer}
PARTS = {"step": whole_step, "orthogonal": orthogonal}


def side(name: str, family: str, option: str, told: str) -> Side:
    """A side's process."""
    words = ["--side", name, "--family", family, option, told]
    return Side("benchmarks.optimizers", words)


def compare(family: str, kind: str, rounds: int) -> Result:
    """A kind beside PyTorch's; Lion beside fused AdamW."""
    against = "adamw" if kind == "lion" else kind
    mine = side("ours", family, "--kind", kind)
    theirs = side("peer", family, "--kind", against)
    play(mine, theirs, rounds)
    more = {
        f"{name}_state_bytes_per_parameter": one.facts["state_bytes"] / one.facts["parameters"]
        for name, one in (("ours", mine), ("peer", theirs))
    }
    seconds = mine.best("seconds"), theirs.best("seconds")
    return Result(f"optimizer {kind}", f"PyTorch's {against}", *seconds, more)


def share_of_a_step(family: str, products: str, rounds: int) -> Result:
    """What Muon's orthogonalisation takes of a training step."""
    from megalite.training.metrics.flops import step_operations

    alone, step = (side(name, family, "--products", products) for name in ("orthogonal", "step"))
    play(alone, step, rounds)
    seconds = alone.best("seconds"), step.best("seconds")
    batches = CASES[family].batches(BATCH, LENGTH)
    learned = sum(step_operations(CASES[family].ours(), batch).model for batch in batches)
    more = {
        "tokens": BATCH * LENGTH,
        "share_of_time": seconds[0] / seconds[1],
        "share_of_cpu_time": alone.best("cpu_s") / step.best("cpu_s"),
        "share_of_flop": alone.facts["flop"] / (alone.facts["flop"] + learned),
    }
    return Result("orthogonalisation", "a step with muon", *seconds, more)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="llama", choices=CASES)
    parser.add_argument("--kind", default="all", choices=("all", *KINDS))
    parser.add_argument("--products", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--side", choices=OPTIMIZERS | PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        if options.side in PARTS:
            serve(lambda: PARTS[options.side](options.family, options.products))
        else:
            serve(lambda: OPTIMIZERS[options.side](options.family, options.kind))
        return
    for kind in KINDS if options.kind == "all" else [options.kind]:
        show(compare(options.family, kind, options.rounds), options.json)
    if options.kind in ("all", "muon"):
        show(share_of_a_step(options.family, options.products, options.rounds), options.json)


if __name__ == "__main__":
    main()
