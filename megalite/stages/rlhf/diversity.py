"""How different answers are."""

from collections.abc import Iterable, Sequence


def distinct(answers: Iterable[Sequence[int]], length: int) -> float:
    """The share of different runs of ``length`` tokens among all runs of all answers.

    Args:
        answers: tokens of each.
        length: of a run, 1 or more.

    Returns:
        1 where no run comes twice; 0 where there is none.

    Source: Li et al. 2016, arXiv:1510.03055, section 5.3 (distinct-1, distinct-2).
    """
    runs = [
        tuple(answer[at : at + length])
        for answer in answers
        for at in range(len(answer) - length + 1)
    ]
    return len(set(runs)) / len(runs) if runs else 0.0
