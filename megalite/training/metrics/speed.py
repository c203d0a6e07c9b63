"""How fast a step was: tokens/s, TFLOP/s, MFU and HFU."""

from collections.abc import Mapping, Sequence

from megalite.distributed.mesh import Mesh
from megalite.distributed.sums import Counts
from megalite.models.batch import Batch
from megalite.models.config import ModelConfig
from megalite.training.metrics.flops import step_operations


class Speed:
    """Counts the tokens and operations of a step, and holds them against what devices can do."""

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        peak_tflops: float,
        recomputed: tuple[int, int] = (0, 0),
    ) -> None:
        """Hold what is needed.

        Args:
            config: of the model.
            mesh: its mesh.
            peak_tflops: of one device.
            recomputed: encoder and decoder blocks whose forward pass is made again.
        """
        self._config, self._mesh = config, mesh
        self._peak, self._recomputed = peak_tflops, recomputed

    def measure(self, batches: Sequence[Batch], seconds: float) -> dict[str, float]:
        """Metrics of a step over these micro-batches of this rank.

        Comm: all-reduce of three numbers over dp.
        """
        counts = Counts(self.counts(batches), self._mesh.dp, self._mesh.device)
        return self.rates(counts.numbers(), seconds)

    def counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Tokens and operations of these micro-batches, which are on the host."""
        tokens = sum(int((~batch.decoder.mask.is_empty).sum()) for batch in batches)
        done = [step_operations(self._config, batch, self._recomputed) for batch in batches]
        return {
            "tokens": float(tokens),
            "model": sum(operations.model for operations in done),
            "hardware": sum(operations.hardware for operations in done),
        }

    def rates(self, total: Mapping[str, float], seconds: float) -> dict[str, float]:
        """Metrics of a step from its :meth:`counts`, summed over dp."""
        per_rank = seconds * self._mesh.world.size * 1e12
        tflops = total["model"] / per_rank
        return {
            "tokens": total["tokens"],
            "tflops_per_rank": tflops,
            "mfu": tflops / self._peak,
            "hfu": total["hardware"] / per_rank / self._peak,
        }
