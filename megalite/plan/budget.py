"""The reverse of a plan: devices for so many days, and the model that a budget is best spent on.

Source: Hoffmann et al. 2022, arXiv:2203.15556: about 20 tokens a parameter.
"""

import math

from megalite.models.part import Part
from megalite.plan.memory import size_of
from megalite.plan.outlook import DAY_S
from megalite.plan.search import Found, Search

TOKENS_A_PARAMETER = 20.0
OPERATIONS_A_TOKEN = 6.0  # and parameter
MOST_DEVICES = 16384


def days_of(found: Found) -> float:
    """Days of all steps."""
    return found.job.work.train.full_steps * found.seconds.total / DAY_S


def answers(search: Search, start: int, days: float) -> list[str]:
    """The fewest devices, ``start`` halved or doubled, that end the run in so many days.

    Also what model and how many tokens those devices would best be spent on in that time.
    """
    count = start
    while count % 2 == 0 and count > search.cluster.per_node:
        count //= 2
    lines = []
    while count <= MOST_DEVICES:
        found = search.best(count, 1)
        if found:
            taken = days_of(found[0])
            lines.append(f"{count:>6} devices: {taken:.3g} days")
            if taken <= days:
                return [*lines, *_spent_best(search, found[0], days)]
        else:
            lines.append(f"{count:>6} devices: no layout fits")
        count *= 2
    return [*lines, f"no number of devices up to {MOST_DEVICES} ends the run in {days:g} days"]


def _spent_best(search: Search, found: Found, days: float) -> list[str]:
    job, model = found.job, search.work.model
    parameters = size_of(model, Part.whole(model)).parameters
    rate = OPERATIONS_A_TOKEN * parameters * job.tokens / found.seconds.total  # a second
    budget = rate * days * DAY_S
    best = math.sqrt(budget / OPERATIONS_A_TOKEN / TOKENS_A_PARAMETER)
    return [
        f"an estimate (Hoffmann et al. 2022): at this rate {budget:.2e} operations in {days:g} "
        f"days are best spent on {best / 1e9:.3g}B parameters and "
        f"{TOKENS_A_PARAMETER * best / 1e9:,.3g}B tokens",
    ]
