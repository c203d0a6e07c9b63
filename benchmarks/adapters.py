"""One optimizer step of LoRA, ours and PEFT's, on conversations of real lengths.

Both have rank 16 beside every linear layer but the head, a base in fp32, the same conversations,
clipping of the global norm and PyTorch's fused AdamW. Ours packs them; PEFT's are padded to the
longest of a micro-batch.
"""

from collections.abc import Callable

import torch

from benchmarks.conversations import ConversationCase
from benchmarks.models import CASES

RANK, ALPHA, RATE, SEED = 16, 32, 1e-4, 0
Side = tuple[Callable[[], None], dict]


def _conversations() -> ConversationCase:
    return ConversationCase(CASES["llama"].ours, CASES["llama"].peer, conversations=1)


def make_ours(count: int) -> Side:
    """Our step: the stage's own learner."""
    from megalite.distributed.mesh import Mesh, ParallelConfig
    from megalite.engine.build import BuildOptions, build_model
    from megalite.engine.lora import LoRAConfig
    from megalite.engine.model import Task
    from megalite.models.outputs import Loss
    from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
    from megalite.training.learner import Learner, Learning

    mesh, case = Mesh.single(), _conversations()
    options = BuildOptions(lora=LoRAConfig(rank=RANK, alpha=ALPHA))
    model = build_model(case.ours(), mesh, ParallelConfig(), seed=SEED, options=options)
    train = TrainConfig(steps=1000, global_batch_size=count, micro_batch_size=1)
    learning = Learning(train, OptimizerConfig(learning_rate=RATE), ScheduleConfig(), SEED)
    learner, batches = Learner(model, mesh, learning), case.batches(count, 0)
    targets, work = sum(batch.num_targets for batch in batches), [(b, None) for b in batches]

    def step() -> None:
        learner.step(work, lambda scale: Task(Loss(scale)), targets, 0)

    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return step, {"rows": sum(b.labels.numel() for b in batches), "learned": learned}


def make_peft(count: int) -> Side:
    """The same step in PEFT."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(SEED)
    case = _conversations()
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(case.peer(), config).train()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE, fused=True)
    batches = case.peer_batches(count, 0)
    targets = [int((inputs["labels"][:, 1:] >= 0).sum()) for inputs in batches]

    def step() -> None:
        for inputs, here in zip(batches, targets, strict=True):
            (model(**inputs).loss * (here / sum(targets))).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    rows = sum(inputs["input_ids"].numel() for inputs in batches)
    return step, {"rows": rows, "learned": sum(p.numel() for p in learned)}
