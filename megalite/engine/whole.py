"""A model that is not cut into pipeline parts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megalite.engine.data_parallel import set_gradient_sync
from megalite.engine.model import Item, LossSums, Parts, Task
from megalite.models.batch import Batch
from megalite.models.context import KeyValueCache
from megalite.models.outputs import Output, Scale


class Whole(Parts):
    """One part that is the model; see :class:`megalite.engine.model.Model`."""

    def forward_backward(
        self,
        items: Sequence[Item],
        task: Task,
        *,
        dropout_seed: int | None = None,
        loss_scale: Scale = 1.0,
    ) -> dict[str, Tensor]:
        """See :class:`megalite.engine.model.Model`."""
        (part,) = self.parts
        sums = LossSums(task, loss_scale, self.mesh.device)
        for number, (batch, extra) in enumerate(items):
            self.under_way = number + 1, len(items)
            set_gradient_sync(part, self.how, is_last=number == len(items) - 1)
            result = part(batch, task.output_for(extra), dropout_seed=dropout_seed)
            sums.add(result, extra).backward()
        self.under_way = 0, 0
        return dict(sums.sums)

    @torch.no_grad()
    def evaluate(
        self, batches: Sequence[Batch], output: Output, cache: KeyValueCache | None = None
    ) -> list[Any]:
        """See :class:`megalite.engine.model.Model`."""
        (part,) = self.parts
        return [part(batch, output, cache=cache) for batch in batches]
