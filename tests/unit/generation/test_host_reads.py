"""How often the host reads what the device holds while answers are written: each would wait."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megalite.generation.answer import Asked, answering
from megalite.generation.generate import LOOK_EVERY, Ending
from megalite.generation.sampling import SamplingConfig
from megalite.stages.samples import decode_with
from tests.unit.generation.test_slots import make, prompts_of

READS = "tolist", "cpu", "numpy"  # of a tensor on a CPU no operator is called
# Operators whose results, or the results' sizes, come to the host.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"}
TRUNCATED = {"top_k": 20, "top_p": 0.9, "min_p": 0.01, "temperature": 0.7}
PENALISED = {"repetition_penalty": 1.3, "presence_penalty": 0.2, "frequency_penalty": 0.1}
CASES = {
    "drawn": ("llama", {}),
    "with an encoder": ("t5", {}),
    "two positions": ("glm", {}),
    "likeliest": ("llama", {"temperature": 0.0}),
    "narrowed": ("llama", TRUNCATED | PENALISED),
}


class HostReads(TorchDispatchMode):
    """Counts by name what makes the host wait for a device, were the tensors on one."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.counts, self._monkeypatch = Counter(), monkeypatch

    def __enter__(self):
        for name in READS:
            self._monkeypatch.setattr(torch.Tensor, name, self._counting(name))
        return super().__enter__()

    def __exit__(self, *error):
        self._monkeypatch.undo()
        return super().__exit__(*error)

    def _counting(self, name):
        original = getattr(torch.Tensor, name)

        def counted(*arguments, **options):
            self.counts[name] += 1
            return original(*arguments, **options)

        return counted

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        self.counts.update({name} & WAITING)
        if name in ("index", "index_put", "index_put_"):  # by a mask: its true elements are counted
            masks = (x for x in args[1] if x is not None and x.dtype == torch.bool)
            self.counts.update(["mask" for _ in masks])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES)
def test_the_host_reads_a_flag_a_row_every_few_tokens(monkeypatch, case):
    name, sampling = CASES[case]
    prompts, config = prompts_of(name)[:3], SamplingConfig(seed=5, **sampling)
    writing = answering(decode_with(make(name)), Asked(prompts, range(3)), config, Ending(()))
    with HostReads(monkeypatch) as reads:
        assert writing.step()
        reads.counts.clear()
        for _ in range(2 * LOOK_EVERY):
            assert writing.step()
    assert reads.counts == {"tolist": 2}


def test_reads_are_counted(monkeypatch):
    x = torch.arange(3.0)
    with HostReads(monkeypatch) as reads:
        x.tolist(), x.cpu(), x.sum().item(), bool(x[0] > 1), x.nonzero(), x[x > 1]
    assert reads.counts == {
        "tolist": 1,
        "cpu": 1,
        "_local_scalar_dense": 2,
        "nonzero": 1,
        "mask": 1,
    }
