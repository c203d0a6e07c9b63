"""What the processes of a run find out together before they have a mesh: through their store.

The store carries text whatever the backend, and needs no device.
"""

from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from megalite.distributed.launch import Launch
from megalite.errors import UserError
from megalite.torch_private import default_store


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
            store.set("refused", str(error) or type(error).__name__)
            store.set("text", "")
            raise
        store.set("refused", "")
        store.set("text", made)
        return made
    refused = store.get("refused").decode()
    if refused:
        raise UserError(refused)
    return store.get("text").decode()


def texts_of_all(launch: Launch, text: str, wait: timedelta | None = None) -> list[str]:
    """The text of every process, by rank.

    Args:
        launch: this process among the run's.
        text: its own.
        wait: how long for the others; None: as long as the store does.

    Comm: a text of each through the store.
    """
    if launch.world_size == 1:
        return [text]
    store = _store_of_call(launch.rank)
    store.set(str(launch.rank), text)
    ranks = [str(rank) for rank in range(launch.world_size)]
    if wait is not None:
        store.wait(ranks, wait)
    return [store.get(rank).decode() for rank in ranks]


def _store_of_call(rank: int) -> dist.Store:
    """A part of the store for one call, the same on all ranks: each counts its calls there."""
    store = dist.PrefixStore("agreement", default_store())
    return dist.PrefixStore(str(store.add(f"calls {rank}", 1)), store)
