"""Answers with their experience, and which of them a rank learns from in an optimizer step.

A mini-batch is drawn from the answers of all data-parallel ranks, so that an optimizer step is the
same wherever they were written. A rank gets its share of each mini-batch: with several of them it
has to hold the others' answers too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megalite.data.loader import passes_over
from megalite.distributed.gather import gather_objects
from megalite.distributed.mesh import Axis
from megalite.engine.model import Item
from megalite.models.batch import Batch
from megalite.stages.rlhf.experience import Experience
from megalite.stages.rlhf.whiten import ALONE


@dataclass(frozen=True)
class Answered:
    """Answers and what the updates read of them.

    Attributes:
        batch: B sequences of prompt and answer.
        experience: of the same sequences.
        axis: the ranks that share the answers out: each of them has all of these.
    """

    batch: Batch
    experience: Experience
    axis: Axis = ALONE

    def gathered(self, axis: Axis) -> "Answered":
        """The answers of all ranks of ``axis``, on the CPU, in the order of ranks.

        Comm: all-gather of the answers over ``axis``.
        """
        if axis.size == 1:
            return self
        own = self.batch.to("cpu"), self.experience.to("cpu")
        batches, experiences = zip(*gather_objects(own, axis), strict=True)
        return Answered(Batch.joined(batches), Experience.joined(experiences), axis)

    def micro_batches(
        self, chosen: Tensor, size: int, device: torch.device
    ) -> tuple[list[Item], int]:
        """This rank's share of a mini-batch.

        Args:
            chosen: [m] int64, the mini-batch's answers.
            size: most answers of a micro-batch.
            device: of the micro-batches.

        Returns:
            As many micro-batches with their experience as every rank has, the last perhaps of an
            answer that weighs nothing; and the number of answer tokens in them.
        """
        items: list[Item] = []
        count = 0
        for places in passes_over(len(chosen), size, self.axis.rank, self.axis.size):
            index = chosen[places or [0]].to(self.experience.mask.device)
            batch, experience = self.batch.select(index), self.experience.select(index)
            if not places:
                batch, experience = batch.without_targets(), experience.without_answers()
            count += int(experience.mask.sum())
            items.append((batch.to(device), experience.to(device)))
        return items, count
