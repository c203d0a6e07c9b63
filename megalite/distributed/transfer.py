"""Copies between the host and a device for which neither of them waits."""

from collections.abc import Mapping

import torch
from torch import Tensor

from megalite.distributed.waiting import waiting


def moved(x: Tensor, device: torch.device | str) -> Tensor:
    """``x`` on ``device``.

    To a GPU the copy goes through page-locked memory and is queued: the host goes on, and what is
    queued behind it sees the values. To the host it is complete when this returns.
    """
    device = torch.device(device)
    if x.device.type != "cpu" or device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


class Staged:
    """Copies of tensors on the host that are under way while the device goes on.

    Later changes of the tensors, queued on the same stream, don't reach the copies.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin to copy: a GPU's tensors into page-locked memory, without waiting for them."""
        is_cuda = any(tensor.device.type == "cuda" for tensor in tensors.values())
        self._copies = {name: _copy(tensor) for name, tensor in tensors.items()}
        self._arrived = torch.cuda.Event() if is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def wait(self) -> dict[str, Tensor]:
        """The copies, once they are complete; any thread may wait."""
        if self._arrived is not None:
            with waiting():
                self._arrived.synchronize()
        return self._copies


def _copy(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.device.type == "cpu":
        return tensor.clone()
    return tensor.to("cpu", non_blocking=tensor.device.type == "cuda")  # into page-locked memory


class Reading:
    """Numbers that a device makes, on their way to the host.

    Attributes:
        names: of the numbers.
    """

    def __init__(self, names: tuple[str, ...], values: Tensor) -> None:
        """Begin to copy.

        Args:
            names: of the numbers.
            values: [len(names)], fp64.
        """
        self.names = names
        self._staged = Staged({"values": values}) if values.device.type == "cuda" else None
        self._values = values

    def numbers(self) -> dict[str, float]:
        """The numbers by name; the host waits until the device has made them, not longer."""
        values = self._values if self._staged is None else self._staged.wait()["values"]
        return dict(zip(self.names, values.tolist(), strict=True))
