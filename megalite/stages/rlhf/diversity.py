"""How different answers are."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

MOST_TOKENS = 4  # of the runs that BLEU compares


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


def self_bleu(groups: Iterable[Sequence[Sequence[int]]]) -> float:
    """How alike the answers to one prompt are: the mean BLEU of each against the others.

    Args:
        groups: of each prompt the tokens of its answers, none of them empty, two or more.

    Returns:
        1 where a prompt's answers are all equal; 0 where no answer has a token of another, or
        there are none.

    Source: Zhu et al. 2018, arXiv:1802.01886, section 3.2.
    """
    scores = [
        _bleu(answer, [*group[:place], *group[place + 1 :]])
        for group in groups
        for place, answer in enumerate(group)
    ]
    return math.fsum(scores) / len(scores) if scores else 0.0


def _bleu(answer: Sequence[int], references: Sequence[Sequence[int]]) -> float:
    """BLEU of runs of up to four tokens, one added to the counts of those of two and more.

    Source: Papineni et al. 2002, section 2.3; the added one: Lin & Och 2004, "ORANGE", section 4.
    """
    logs = []
    for length in range(1, min(MOST_TOKENS, len(answer)) + 1):
        runs, most = _runs(answer, length), Counter[tuple[int, ...]]()
        for reference in references:
            most |= _runs(reference, length)
        added = length > 1
        found = (runs & most).total() + added
        if not found:
            return 0.0
        logs.append(math.log(found / (runs.total() + added)))
    nearest = min((abs(len(r) - len(answer)), len(r)) for r in references)[1]
    brevity = min(1 - nearest / len(answer), 0.0)
    return math.exp(brevity + math.fsum(logs) / len(logs))


def _runs(tokens: Sequence[int], length: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(tokens[at : at + length]) for at in range(len(tokens) - length + 1))
