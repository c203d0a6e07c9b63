"""What the processes of a run find out together before they have a mesh: through their store.

The store carries text whatever the backend, and needs no device.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from megalite.distributed.launch import Launch
from megalite.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store

LONGEST_WORK = timedelta(days=7)  # of a node's first process, for which the others wait


def text_of_first(launch: Launch, make: Callable[[], str]) -> str:
    """What the first process makes, given to all; what it refuses, all refuse.

    Comm: one text through the store.

    Raises:
        UserError: the first process raised it.
    """
    if launch.world_size == 1:
        return make()
    store = _store_of_call(launch.rank)
    if launch.rank == 0:
        try:
            made = make()
        except Exception as error:
            store.set("refused", _reason(error))
            store.set("text", "")
            raise
        store.set("refused", "")
        store.set("text", made)
        return made
    refused = store.get("refused").decode()
    if refused:
        raise UserError(refused)
    return store.get("text").decode()


def text_of_any(launch: Launch, text: str, wait: timedelta | None = None) -> str:
    """A text that some process has, the first to come, given to all; empty where all have none.

    Args:
        launch: this process among the run's.
        text: its own, mostly empty.
        wait: how long for the others; None: as long as the store does.

    Comm: a few words to and from the store, as many for each process however many there are.
    """
    if launch.world_size == 1:
        return text
    store = _store_of_call(launch.rank)
    if text:
        store.compare_set("text", "", text)
    if store.add("heard", 1) == launch.world_size:
        store.set("all", "1")
    if wait is None:
        store.wait(["all"])
    else:
        store.wait(["all"], wait)
    return store.get("text").decode() if store.check(["text"]) else ""


def text_of_node(launch: Launch, make: Callable[[], str], at_once: bool = False) -> str:
    """What the first process of each node makes, given to the node's others when all nodes' have.

    What one of them refuses, all refuse.

    Args:
        launch: this process among the run's.
        make: makes it, for days perhaps.
        at_once: whether every process makes its own.

    Returns:
        The text; empty where ranks aren't numbered node by node.

    Comm: as :func:`text_of_any`, and a text through the store.

    Raises:
        UserError: a process that made a text raised it.
    """
    if launch.world_size == 1:
        return make()
    store = _store_of_call(launch.rank)
    makes = at_once or launch.local_rank == 0
    made = ""
    try:
        if makes:
            made = make()
            store.set(f"of {launch.rank}", made)
    except Exception as error:
        text_of_any(launch, _reason(error), LONGEST_WORK)
        raise
    if refused := text_of_any(launch, "", LONGEST_WORK):
        raise UserError(refused)
    first = f"of {launch.rank - launch.local_rank}"
    return store.get(first).decode() if not makes and store.check([first]) else made


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _store_of_call(rank: int) -> "Store":
    """A part of the store for one call, the same on all ranks: each counts its calls there."""
    import torch.distributed as dist  # a process alone, such as data prepare's, needs none of it

    from megalite.torch_private import default_store

    store = dist.PrefixStore("agreement", default_store())
    return dist.PrefixStore(str(store.add(f"calls {rank}", 1)), store)
