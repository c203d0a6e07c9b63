"""Jobs that weigh what FSDP2 holds beyond its shards while a step runs."""

from typing import Any

from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from megalite.distributed.launch import Launch
from tests.dist import jobs


def _weigh(tensors: list[Tensor | None]) -> int:
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors if t is not None}
    return sum(storage.size() for storage in storages.values())


def gathered(launch: Launch, model: str, layout: dict[str, Any], precision: str) -> int:
    """The most bytes of whole parameters and gradients at any block of a second step."""
    learner = jobs.make_learner(launch, model, layout, precision)
    groups = [
        module._get_fsdp_state()._fsdp_param_group
        for module in learner.model.parts[0].modules()
        if isinstance(module, FSDPModule)
    ]
    held = [parameter for group in groups for parameter in group.fsdp_params]
    most = 0

    def weigh(*_: Any) -> None:
        nonlocal most
        whole = [tensor for p in held for tensor in p.all_gather_outputs]
        grown = [p._unsharded_param for p in held if hasattr(p, "_unsharded_param")]
        grown = [p.grad for p in grown] + [p.unsharded_accumulated_grad for p in held]
        most = max(most, _weigh(whole) + _weigh(grown))

    jobs.step(learner, model, 0)
    for block in learner.model.parts[0].blocks():
        block.register_forward_hook(weigh)
        block.register_full_backward_hook(weigh)
    jobs.step(learner, model, 1)
    return most
