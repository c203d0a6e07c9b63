"""A running mean of a model's weights, of which each process holds what it holds of the weights.

Source: Polyak & Juditsky 1992; its use after PPO, Ouyang et al. 2022, arXiv:2203.02155, appendix C.
"""

import torch
from torch import Tensor

from megalite.engine.model import Model
from megalite.layers.shards import local_part


class Average:
    """``mean = decay * mean + (1 - decay) * weight`` after each step; it begins as the weights.

    Attributes:
        tensors: fp32, by the whole model's names, cut as the parameters are.
    """

    def __init__(self, model: Model, decay: float) -> None:
        """Begin with the weights as they are.

        Args:
            model: whose weights.
            decay: what of the mean stays at each step.
        """
        self._model, self._decay = model, decay
        model.reshard()
        self.tensors = {n: p.detach().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, bad: Tensor) -> None:
        """Move towards the weights, unless ``bad``, a bool scalar, says that the step was dropped.

        Nothing waits for the device.
        """
        share = (1.0 - self._decay) * (~bad).float()
        for name, parameter in self._model.named_parameters():
            mean = local_part(self.tensors[name])
            mean.add_((local_part(parameter) - mean) * share)
