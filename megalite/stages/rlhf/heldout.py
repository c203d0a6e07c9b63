"""What answers to held-out prompts are like: of PPO, GRPO and DPO alike, so that they compare."""

from collections.abc import Callable, Sequence

import torch

from megalite.data.chat.datasets import Prompts
from megalite.data.loader import passes_over
from megalite.distributed.gather import gather_objects
from megalite.distributed.mesh import Mesh
from megalite.distributed.sums import sum_metrics
from megalite.generation.prompts import Prompt
from megalite.seeds import fold
from megalite.stages.rlhf.diversity import distinct, self_bleu
from megalite.stages.rlhf.experience import Judgement
from megalite.stages.rlhf.redraw import Rolled, in_groups

SEED = 3  # folded into a run's: answers are drawn alike at every evaluation
RollAnswers = Callable[[Sequence[Prompt], Sequence[int], int], Rolled]


def measure_answers(
    roll: RollAnswers,
    prompts: Prompts,
    samples: int,
    each: int,
    run_seed: int,
    mesh: Mesh,
) -> dict[str, float]:
    """Answer held-out prompts and measure the answers, drawn with one seed throughout.

    Args:
        roll: answers prompts, given the numbers of the answers and a seed, and judges the answers.
        prompts: held out.
        samples: most of them that are answered.
        each: answers to each.
        run_seed: of the run.
        mesh: whose data-parallel ranks share the prompts out.

    Returns:
        ``heldout_reward`` and its deviation, ``heldout_kl`` (nats per answer),
        ``heldout_entropy`` (nats per token, as the tokens drawn tell it), ``heldout_ended`` (share
        of answers), ``heldout_response_tokens``, ``heldout_distinct_1`` to ``3``, and with several
        answers ``heldout_self_bleu``. Each prompt counts once over all ranks, which answer equally
        many: the last ones of a rank may be answers that don't count.

    Comm: as the passes of ``roll``, an all-gather of the answers and an all-reduce over dp.
    """
    count = min(samples, len(prompts))
    share = -(-count // mesh.dp.size)
    (own,) = passes_over(count, share, mesh.dp.rank, mesh.dp.size)
    numbers = own + [0] * (share - len(own))
    asked = in_groups([prompts[number] for number in numbers], numbers, each)
    batch, judged = roll(*asked, fold(run_seed, SEED))
    kept = len(own) * each
    rows = zip(batch.labels[:kept], judged.mask[:kept], strict=True)
    written = gather_objects([labels[mask].tolist() for labels, mask in rows], mesh.dp)
    answers = [answer for part in written for answer in part]
    means = _means(judged, kept, mesh)
    means["heldout_response_tokens"] = sum(map(len, answers)) / len(answers)
    means |= {f"heldout_distinct_{n}": distinct(answers, n) for n in (1, 2, 3)}
    if each > 1:
        groups = [answers[first : first + each] for first in range(0, len(answers), each)]
        means["heldout_self_bleu"] = self_bleu(groups)
    return means


def _means(judged: Judgement, kept: int, mesh: Mesh) -> dict[str, float]:
    """What judges say of the first ``kept`` answers of each rank. Comm: all-reduce over dp."""
    scores, mask = judged.scores[:kept].double(), judged.mask[:kept]
    sums = {
        "reward": scores.sum(),
        "square": scores.square().sum(),
        "kl": judged.kl[:kept].sum(),
        "surprise": -judged.log_probs[:kept].masked_fill(~mask, 0.0).double().sum(),
        "tokens": mask.sum(),
        "ended": judged.ended[:kept].sum(),
        "count": torch.tensor(float(kept)),
    }
    total = sum_metrics({n: v.to(mesh.device) for n, v in sums.items()}, mesh.dp)
    mean = total["reward"] / total["count"]
    variance = max(total["square"] / total["count"] - mean * mean, 0.0)
    return {
        "heldout_reward": mean,
        "heldout_reward_deviation": variance**0.5,
        "heldout_kl": total["kl"] / total["count"],
        "heldout_entropy": total["surprise"] / total["tokens"],
        "heldout_ended": total["ended"] / total["count"],
    }
