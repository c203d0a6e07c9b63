"""The head: what a caller asks of the last hidden states."""

import torch
from torch import Tensor
from torch.nn import functional

from megalite import torch_private
from megalite.distributed.collectives import gather_copies, shard_bounds
from megalite.distributed.mesh import Mesh
from megalite.layers.layer import Initial, Layer
from megalite.layers.linear import Projection
from megalite.layers.region import enter
from megalite.models.batch import IGNORE, Batch
from megalite.models.config import ModelConfig
from megalite.models.outputs import Hidden, Judgement, Logits, LogProbs, Loss, Output, Values
from megalite.ops import LossOptions, VocabularySlice, linear_cross_entropy, token_log_probs
from megalite.ops.linear import by_rows, linear
from megalite.ops.token_log_probs import token_judgement


class Head(Layer):
    """A matrix [V, E] split over tp along V, or one row [1, D] for values."""

    def __init__(self, config: ModelConfig, mesh: Mesh) -> None:
        """Declare the weights; a tied head has no matrix of its own."""
        super().__init__(mesh)
        self.config = config
        width = config.embedding_width
        std = Initial(config.deviation("head", width, config.vocab_size))
        if config.head == "value":
            # Stiennon et al. 2020, arXiv:2009.01325, appendix B.1
            std = Initial((config.hidden_size + 1) ** -0.5)
            self.value = Projection(mesh, 1, config.hidden_size, std, bias=config.head_bias)
            return
        if not config.tie_embeddings:
            self.add("weight", (config.vocab_size, width), std, shard=0, rows=1)
        if config.head_bias:
            self.add("bias", (config.vocab_size,), Initial(), shard=0)
        if width != config.hidden_size:
            size = config.hidden_size
            self.project = Projection(
                mesh, width, size, Initial(config.deviation("projection", size, width))
            )

    def forward(
        self, hidden: Tensor, batch: Batch, output: Output, tied: Tensor | None
    ) -> Tensor | tuple[Tensor, ...]:
        """Give what ``output`` asks.

        Args:
            hidden: [B, S, D], or [B, S/tp, D] under sequence parallelism.
            batch: for the labels and weights.
            output: what is asked.
            tied: the embedding's local matrix [V/tp, E], for a tied head.
        """
        length = batch.decoder.length
        if isinstance(output, Hidden):
            return self._all_rows(hidden, length)
        if isinstance(output, Values):
            return self._all_rows(self.value(hidden), length).float().sum(-1)
        if hasattr(self, "project"):
            hidden = self.project(hidden)
        hidden = enter(hidden, self.mesh, length)
        if isinstance(output, Logits) and output.last_row:
            hidden = hidden[:, -1:]
        weight = self.local("weight") if tied is None else tied
        if self.config.normalised_head:
            weight = functional.normalize(weight, dim=-1)
        bias = self.local("bias") if self.config.head_bias else None
        if isinstance(output, Logits):
            return self._logits(hidden, weight, bias)
        hidden = hidden.flatten(0, 1)  # [T, E]
        if isinstance(output, Loss):
            return self._loss(hidden, weight, bias, batch, output)
        assert isinstance(output, LogProbs | Judgement)
        labels = batch.labels.flatten()
        # One temperature of capped logits: that of what is capped, and of the cap.
        scale, cap = self.config.logit_scale, self.config.logit_cap
        heat = output.temperature if isinstance(output, LogProbs) else 1.0
        options = self._options(batch, logit_scale=scale / heat, logit_cap=cap / heat)
        give = token_log_probs if isinstance(output, LogProbs) else token_judgement
        results = give(hidden, weight, labels, bias, options)
        # Nothing else uses the results: no views for autograd, of which FSDP2 would warn.
        return tuple(torch_private.shaped(r, batch.labels.shape) for r in results)

    def _options(self, batch: Batch, **choices: float) -> LossOptions:
        size, tp = self.config.vocab_size, self.mesh.tp
        vocabulary = VocabularySlice(tp, shard_bounds(size, tp)[0], size)
        return LossOptions(**choices, vocabulary=vocabulary, rows=batch.rows)

    def _all_rows(self, x: Tensor, length: int) -> Tensor:
        if not self.mesh.sequence_parallel:
            return x
        return gather_copies(x, self.mesh.tp, 1, length)

    def _logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        logits = linear(hidden, weight, bias)
        if self.config.logit_scale != 1.0:
            logits = logits * self.config.logit_scale
        if self.config.logit_cap:
            cap = self.config.logit_cap
            logits = cap * by_rows(torch.tanh, logits / cap)
        return gather_copies(logits, self.mesh.tp, 2, self.config.vocab_size)

    def _loss(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, batch: Batch, output: Loss
    ) -> Tensor:
        labels = batch.labels.flatten()
        token_weights = (labels != IGNORE).float() * output.scale
        if batch.weights is not None:
            token_weights = token_weights * batch.weights.flatten()
        options = self._options(
            batch,
            label_smoothing=output.label_smoothing,
            z_loss=output.z_loss,
            max_z_loss=output.max_z_loss,
            logit_scale=self.config.logit_scale,
            logit_cap=self.config.logit_cap,
        )
        return linear_cross_entropy(hidden, weight, labels, token_weights, bias, options)
