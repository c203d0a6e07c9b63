"""What tensors take while something runs."""

import gc
import itertools
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def most_bytes(work: Callable[[], object]) -> int:
    """The most bytes of tensors on the CPU at once, beyond those of its start."""
    gc.collect()  # what was garbage before would be freed amid the work, and counted as its own
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    changes.sort(key=lambda one: one[0])
    return max(itertools.accumulate((size for _, size in changes), initial=0))
