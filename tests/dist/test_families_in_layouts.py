"""Windows, norms and caps of families of today in two layouts: loss, norm and every gradient."""

import pytest

from tests.dist import jobs

STEPS = 1
FAMILIES = ("mistral", "qwen3", "gemma2", "gemma3", "gpt-neox", "glm4")
LAYOUTS = {
    "tp3 sequence": (3, {"tp": 3, "sequence_parallel": True}),
    "pp2 fsdp2": (4, {"pp": 2, "shard": 2}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_a_family_is_that_of_one_process(cluster, family: str):
    model = f"{family}-tiny"
    losses, norms, gradients = jobs.train(jobs.ALONE, model, {}, STEPS)
    for processes, layout in LAYOUTS.values():
        results = cluster.run(
            processes, "tests.dist.jobs:train", model=model, layout=layout, steps=STEPS
        )
        seen = set()
        for their_losses, their_norms, their_gradients in results:
            assert their_losses == pytest.approx(losses, rel=1e-5)
            assert their_norms == pytest.approx(norms, rel=1e-4)
            for name, gradient in their_gradients.items():
                difference = (gradient - gradients[name]).norm()
                assert difference <= 1e-4 * gradients[name].norm() + 1e-8, name
            seen |= set(their_gradients)
        assert seen == set(gradients)
