"""A thread's own part of the store."""

from concurrent.futures import ThreadPoolExecutor, wait

import torch.distributed as dist

from megalite.distributed.rendezvous import connection_of_its_own


def test_a_rank_that_is_early_at_the_second_call_waits_for_its_prefix():
    store = dist.HashStore()
    first = [connection_of_its_own(store, rank) for rank in range(2)]
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(connection_of_its_own, store, 1)
        wait([early], timeout=0.3)
        second = connection_of_its_own(store, 0), early.result(timeout=60)
    first[0].set("key", "first")
    second[0].set("key", "second")
    assert [s.get("key") for s in (first[1], second[1])] == [b"first", b"second"]
