"""Groups of other prompts in place of those whose scores are all equal (dynamic sampling).

The other prompts are read from an order of their own: which one stands in for a prompt is a
function of the step, the prompt's place and the round, so a run is the same in every layout and
after any restart.

Source: Yu et al. 2025, arXiv:2503.14476, section 3.2.
"""

from collections.abc import Callable, Sequence

import torch

from megalite.distributed.gather import gather_objects
from megalite.distributed.mesh import Axis
from megalite.generation.prompts import Prompt
from megalite.models.batch import Batch
from megalite.stages.rlhf.advantages import are_equal
from megalite.stages.rlhf.experience import Judgement, final_scores
from megalite.stages.rlhf.groups import GroupLearning

Rolled = tuple[Batch, Judgement]  # answers, those of a group side by side, and what is said of them
Roll = Callable[[Sequence[int], int], Rolled]  # of a rank's prompts by place, in a round


def in_groups(
    prompts: Sequence[Prompt], ids: Sequence[int], size: int
) -> tuple[list[Prompt], list[int]]:
    """Each prompt as often as it is answered, and a number for each answer."""
    each = [prompt for prompt in prompts for _ in range(size)]
    return each, [number * size + answer for number in ids for answer in range(size)]


def redraw(
    rolled: Rolled, roll: Roll, rounds: int, how: GroupLearning, axis: Axis
) -> tuple[Rolled, float]:
    """Replace groups of equal scores, up to ``rounds`` times.

    Args:
        rolled: this rank's answers.
        roll: answers to the other prompts of a round at some of this rank's places.
        rounds: most times that a group is replaced.
        how: groups are learned from.
        axis: the data-parallel ranks.

    Returns:
        The answers, and how many groups were drawn anew over all ranks.

    Comm: an all-gather of a number a round, and what ``roll`` communicates; all ranks ask it for
    equally many groups, as its passes communicate: some of them for one that nobody reads.
    """
    count = 0.0
    for number in range(1, rounds + 1):
        equal = are_equal(final_scores(rolled[1], how.scores), how.size)
        places = equal.nonzero().flatten().tolist()
        counts = gather_objects(len(places), axis)
        if not any(counts):
            break
        spare = [0] * (max(counts) - len(places))
        rolled = _with_groups(rolled, roll([*places, *spare], number), places, how.size)
        count += sum(counts)
    return rolled, count


def _with_groups(rolled: Rolled, others: Rolled, places: Sequence[int], size: int) -> Rolled:
    """The answers with the first groups of ``others`` at these places."""
    batch, judged = (
        Batch.joined([rolled[0], others[0]]),
        Judgement.joined([rolled[1], others[1]]),
    )
    index = torch.arange(len(rolled[1].mask))
    for number, place in enumerate(places):
        first = len(index) + number * size
        index[place * size : (place + 1) * size] = torch.arange(first, first + size)
    index = index.to(judged.mask.device)
    return batch.select(index), judged.select(index)
