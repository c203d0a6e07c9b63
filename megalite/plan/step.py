"""Seconds of a training step and of its parts.

Source: Narayanan et al. 2021, arXiv:2104.04473, sections 2 and 3; Korthikanti et al. 2022,
arXiv:2205.05198; Isaev et al. 2023 (Calculon), doi:10.1145/3581784.3607102.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

from megalite.models.part import Part
from megalite.plan.constants import Constants
from megalite.plan.devices import Cluster
from megalite.plan.job import Job
from megalite.plan.kernels import Kernels
from megalite.plan.memory import data_parallel
from megalite.plan.rows import Pairs
from megalite.plan.traffic import Group, Links

OPTIMIZER_BYTES = 36.0  # a parameter: read and written by AdamW, clipping and the narrow copy


@dataclass(frozen=True)
class Seconds:
    """Seconds of a step.

    Attributes:
        compute: products, attention and what is bound by memory, of the slowest stage.
        recompute: forward passes made again.
        host: a device's waiting for what its process has yet to launch.
        tp: collectives of tensor parallelism that nothing hides.
        bubble: waiting for the pipeline to fill and drain, and for slower stages.
        sends: between pipeline stages.
        dp: gathering parameters and reducing gradients, as far as nothing hides it.
        optimizer: the update.
        straggling: waiting for the slowest of many nodes.
    """

    compute: float = 0.0
    recompute: float = 0.0
    host: float = 0.0
    tp: float = 0.0
    bubble: float = 0.0
    sends: float = 0.0
    dp: float = 0.0
    optimizer: float = 0.0
    straggling: float = 0.0

    @property
    def total(self) -> float:
        """Of the step."""
        return sum(vars(self).values())

    def __add__(self, other: "Seconds") -> "Seconds":
        """Both, one after the other."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Seconds(*(a + b for a, b in pairs))

    def times(self, factor: float) -> "Seconds":
        """So many of them."""
        return Seconds(*(factor * value for value in vars(self).values()))


def step_seconds(job: Job, cluster: Cluster, constants: Constants) -> Seconds:
    """Seconds of a step of a job on a cluster."""
    return _Timing(job, cluster, constants).step()


def _kind(part: Part) -> tuple[object, ...]:
    """What a part's time depends on."""
    encoder, decoder = part.encoder[1] - part.encoder[0], part.decoder[1] - part.decoder[0]
    return encoder, decoder, part.index > 0, part.ends


@dataclass(frozen=True)
class _Timing:
    job: Job
    cluster: Cluster
    constants: Constants

    @cached_property
    def kernels(self) -> Kernels:
        is_half = self.job.work.width == 2
        return Kernels(self.cluster.device, self.constants, is_half)

    @cached_property
    def links(self) -> Links:
        return Links(self.cluster, self.constants)

    @cached_property
    def tp_group(self) -> Group:
        return Group(self.job.parallel.tp, 1)

    def step(self) -> Seconds:
        """All of it: micro-batches through the pipeline, then gradients and the update."""
        job, parallel = self.job, self.job.parallel
        times: dict[tuple[object, ...], Seconds] = {}
        parts = []
        for part in job.parts:
            kind = _kind(part)
            if kind not in times:
                times[kind] = self._micro_batch(part)
            parts.append(times[kind])
        ranks = [sum(parts[rank :: parallel.pp], start=Seconds()) for rank in range(parallel.pp)]
        slowest = max(ranks, key=lambda rank: rank.total)
        count = job.micro_batches
        passes = slowest.times(count)
        others = sum(rank.total for rank in ranks) - slowest.total
        bubble = others / (len(parts) / parallel.pp)
        passes = dataclasses.replace(passes, bubble=bubble)
        end = self._data_parallel(passes.total)
        total = passes + end
        nodes = max(job.devices / self.cluster.per_node, 1.0)
        waiting = total.total * self.constants.straggling * math.log2(nodes)
        return dataclasses.replace(total, straggling=waiting)

    def _micro_batch(self, part: Part) -> Seconds:
        """Of a micro-batch in a part, forward and backward."""
        job = self.job
        total = Seconds()
        for blocks, rows, is_decoder in (
            (part.encoder[1] - part.encoder[0], self._encoder_rows, False),
            (part.decoder[1] - part.decoder[0], job.rows, True),
        ):
            if blocks:
                total += self._blocks(blocks, rows, is_decoder)
        if part.ends:
            total += self._head()
        if job.parallel.pp > 1:
            total += Seconds(sends=self._sends(part))
        return total

    @property
    def _encoder_rows(self) -> int:
        return self.job.work.train.micro_batch_size * self.job.work.encoder_length

    def _blocks(self, blocks: int, rows: int, is_decoder: bool) -> Seconds:
        """Some blocks of a stack, forward, made again and backward."""
        parallel = self.job.parallel
        products, gradients = self._products(rows, is_decoder)
        attention, attention_back = self._attention(rows, is_decoder)
        moved = self._moved(rows, is_decoder)
        forward = products + attention + moved + self.constants.block_s
        fused = self.job.engine.fused_attention
        backward = gradients + attention_back + 2.0 * (moved + self.constants.block_s)
        tp, hidden_tp = self._tp(rows, is_decoder, gradients / 2)
        share = 1.0
        if parallel.recompute_blocks:
            share = min(parallel.recompute_blocks / blocks, 1.0)
        again = {
            "none": 0.0,
            "selective": moved + (0.0 if fused else attention),
            "full": forward,
        }[parallel.recompute]
        tp_again = tp if parallel.recompute == "full" else 0.0
        if parallel.recompute == "selective" and parallel.sequence_parallel:
            tp_again = tp / 2
        passes = 3.0 + (share if parallel.recompute == "full" else 0.0)
        one = Seconds(
            compute=forward + backward,
            recompute=share * again,
            tp=tp + hidden_tp + share * tp_again,
        )
        return (one + Seconds(host=self._host(passes, one.total))).times(blocks)

    def _host(self, passes: float, device: float) -> float:
        """What a device waits for launches, that works ``device`` seconds in so many passes."""
        launching = passes * self.constants.launch_s
        is_ahead = self.job.engine.launches_ahead and not self.cluster.device.is_host
        return max(launching - device, 0.0) if is_ahead else launching

    def _sublayers(self, rows: int, is_decoder: bool) -> list[tuple[float, float, float]]:
        """(rows, columns, depth) of a block's products in its forward pass."""
        model, tp = self.job.model, self.job.parallel.tp
        size, heads = model.hidden_size, math.ceil(model.num_heads / tp) * model.head_dim
        keys = math.ceil(model.kv_heads / tp) * model.head_dim
        inner = math.ceil(model.ffn_size / tp)
        ups = [(rows, inner, size)] * (2 if model.gated else 1)
        shapes = [(rows, heads + 2 * keys, size), (rows, size, heads), *ups, (rows, size, inner)]
        if is_decoder and model.is_encoder_decoder:
            memory = (self._encoder_rows, 2 * keys, size)
            shapes += [(rows, heads, size), memory, (rows, size, heads)]
        return [tuple(map(float, shape)) for shape in shapes]  # type: ignore[misc]

    def _products(self, rows: int, is_decoder: bool) -> tuple[float, float]:
        shapes, kernels = self._sublayers(rows, is_decoder), self.kernels
        forward = sum(kernels.product(*shape) for shape in shapes)
        if self.job.work.lora.rank:  # frozen matrices have no gradients of their own
            return forward, sum(kernels.product(m, k, n) for m, n, k in shapes)
        return forward, sum(kernels.both_gradients(*shape) for shape in shapes)

    def _attention(self, rows: int, is_decoder: bool) -> tuple[float, float]:
        """Of a block's passes; a fused kernel passes over what the mask forbids."""
        job, model = self.job, self.job.model
        heads = math.ceil(model.num_heads / job.parallel.tp)
        seen, kernel = job.pairs, self.kernels.fused_attention
        if not job.engine.fused_attention:
            encoder = float(job.work.encoder_length)
            seen = Pairs(float(job.work.sequence_length), encoder, encoder)
            kernel = self.kernels.written_attention
        keys = seen.decoder + seen.cross if is_decoder else seen.encoder
        return kernel(rows * keys, heads, model.head_dim)

    def _moved(self, rows: int, is_decoder: bool) -> float:
        """Norms, residuals, dropout, activation, rotation: bytes of a forward pass."""
        model, parallel = self.job.model, self.job.parallel
        across = parallel.tp if parallel.sequence_parallel else 1
        has_cross = is_decoder and model.is_encoder_decoder
        sublayers = 3 if has_cross else 2
        stream = 6.0 * sublayers * model.hidden_size / across  # norm, sum, bias and dropout
        inner = (3.0 if model.gated else 2.0) * model.ffn_size / parallel.tp
        heads = (model.num_heads + model.kv_heads) * model.head_dim / parallel.tp
        turned = 2.0 * heads if model.position == "rope" else 0.0
        turned += 2.0 * heads if model.query_key_norm else 0.0
        return self.kernels.moved(self.kernels.width * rows * (stream + inner + turned))

    def _tp(self, rows: int, is_decoder: bool, weight_gradients: float) -> tuple[float, float]:
        """Collectives of a block's forward pass, and what of its backward pass's is not hidden."""
        model, engine = self.job.model, self.job.engine
        if self.job.parallel.tp == 1:
            return 0.0, 0.0
        sublayers = 3 if is_decoder and model.is_encoder_decoder else 2
        if model.parallel_block != "no":
            sublayers = 1
        bytes_ = float(rows) * model.hidden_size * self.kernels.width
        one = self.links.reduce(bytes_, self.tp_group)
        forward = sublayers * one
        is_cut = self.job.parallel.sequence_parallel
        extra = sublayers * self.links.gather(bytes_, self.tp_group) if is_cut else 0.0
        if not engine.hides_tp or self.cluster.device.is_host:
            return forward, forward + (extra if engine.hides_tp else 0.0)
        if not is_cut:
            return forward, max(forward - weight_gradients, 0.3 * forward)
        return forward, forward / 2 + max(
            forward / 2 + extra - 2 * weight_gradients, 0.15 * forward
        )

    def _head(self) -> Seconds:
        """Logits and loss with their gradients, made once; or a reward's head: nothing."""
        job, model, kernels = self.job, self.job.model, self.kernels
        if model.head != "lm":
            return Seconds()
        columns, rows = math.ceil(model.vocab_size / job.parallel.tp), float(job.rows)
        shape = (rows, float(columns), float(model.embedding_width))
        products = kernels.product(*shape) + kernels.both_gradients(*shape)
        moved = kernels.moved(20.0 * rows * columns)
        bytes_ = rows * model.hidden_size * kernels.width
        return Seconds(compute=products + moved, tp=self.links.reduce(bytes_, self.tp_group))

    def _sends(self, part: Part) -> float:
        """What a part sends forward and backward for a micro-batch."""
        job, parallel = self.job, self.job.parallel
        is_cut = parallel.sequence_parallel or job.engine.cuts_sends
        rows = job.rows + (self._encoder_rows if job.model.is_encoder_decoder else 0)
        bytes_ = float(rows) * job.model.hidden_size * self.kernels.width
        bytes_ /= parallel.tp if is_cut else 1
        stride = parallel.tp * data_parallel(parallel)
        borders = (part.index > 0) + (not part.ends)
        return borders * self.links.send(bytes_, stride)

    def _data_parallel(self, passes: float) -> Seconds:
        """Gathers, reductions and the update, for the process with most parameters."""
        job, parallel, engine = self.job, self.job.parallel, self.job.engine
        most, learned = job.largest / parallel.tp, job.learned / parallel.tp
        dp = data_parallel(parallel)
        shards = {"parameters": parallel.shard, "optimizer": dp, "nothing": 1}[engine.sharded]
        update = self.kernels.moved(OPTIMIZER_BYTES * learned / shards)
        if dp == 1:
            return Seconds(optimizer=update)
        group = Group(dp, parallel.tp)
        reduction = engine.gradient_bytes * learned
        if engine.sharded == "nothing":
            return Seconds(dp=self.links.reduce(reduction, group), optimizer=update)
        weights = self.kernels.width * most
        if engine.sharded == "optimizer":
            spent = self.links.reduce(reduction, group) + self.links.gather(weights, group)
            return Seconds(dp=spent, optimizer=update)
        count = job.micro_batches
        shard = Group(parallel.shard, parallel.tp)
        copies = Group(max(parallel.replicate, 1), parallel.tp * parallel.shard)
        is_resharded = parallel.reshard_after_forward and parallel.pp == 1
        gathers = 2 * count if is_resharded else (count if engine.reduces_each else 1)
        reduces_each = engine.reduces_each or parallel.reduce_gradients == "each"
        reductions = count if reduces_each else 1
        spent = gathers * self.links.gather(weights, shard)
        spent += reductions * self.links.gather(reduction, shard)
        spent += reductions * self.links.reduce(reduction / parallel.shard, copies)
        return Seconds(dp=self._exposed(spent, passes, gathers + reductions), optimizer=update)

    def _exposed(self, spent: float, passes: float, times: int) -> float:
        """What of gathers and reductions no pass hides: of a pipeline, or a host's core, all."""
        if self.job.parallel.pp > 1 or self.cluster.device.is_host:
            return spent
        count = self.job.micro_batches
        behind = passes * min(times / (3.0 * count), 1.0)
        blocks = max(self.job.model.num_layers + self.job.model.num_encoder_layers, 1)
        shown = max(spent - self.constants.hidden * behind, spent / blocks)
        return shown + self.constants.contention * (spent - shown)
