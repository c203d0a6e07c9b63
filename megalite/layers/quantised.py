"""A frozen matrix of a layer in 4 or 8 bits, split over tp as its parameter would be."""

import math

import torch
from torch import Tensor, nn

from megalite.layers.shards import Share, local_box, local_part
from megalite.ops.quantised import Format, Quantised, quantised, row_sizes


class QuantisedWeight(nn.Module):
    """This process's part of a matrix [*out, *inputs] that doesn't learn.

    It is in no parameter, so FSDP2 neither cuts nor gathers it: each process of dp holds it.

    Attributes:
        form: how an element is held.
        shape: of the whole matrix.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, parameter: Tensor, outs: int, form: Format) -> None:
        """Take a parameter's place.

        Args:
            parameter: [*out, *inputs], as tp cuts it.
            outs: how many of its dimensions are outputs.
            form: how an element is held.
        """
        super().__init__()
        self.form, self.shape, self._outs = form, parameter.shape, outs
        self._box = local_box(parameter)
        own, _ = self._box
        self._rows, self._width = math.prod(own[:outs]), math.prod(own[outs:])
        codes, scales = row_sizes(form, self._width)
        kind, device = torch.uint8 if form == "nf4" else torch.int8, local_part(parameter).device
        self.register_buffer("codes", torch.empty(self._rows, codes, dtype=kind, device=device))
        self.register_buffer("scales", torch.empty(self._rows, scales, device=device))

    def share(self, device: torch.device | str = "cpu") -> Share:
        """Memory for this process's part in fp32, to be filled and given to :meth:`hold`."""
        own, offset = self._box
        return Share(torch.empty(own, device=device), self.shape, offset)

    def hold(self, share: Share) -> None:
        """Quantise this process's part, on the device that holds it."""
        matrix = share.local.reshape(self._rows, self._width).to(self.codes.device)
        codes, scales, _ = quantised(matrix, self.form)
        self.codes.copy_(codes)
        self.scales.copy_(scales)

    def matrix(self, rows: tuple[int, int] | None = None) -> Quantised:
        """This process's part as a matrix [O, I].

        Args:
            rows: [first, last) of its first dimension; None: all.
        """
        whole = Quantised(self.codes, self.scales, self._width)
        if rows is None:
            return whole
        each = self._rows // max(self._box[0][0], 1)
        return whole.rows(rows[0] * each, rows[1] * each)

    def out(self) -> torch.Size:
        """What its rows stand for here, such as (N/tp, H)."""
        return torch.Size(self._box[0][: self._outs])
