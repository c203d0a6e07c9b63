"""Three structures of one size on the same text: held-out loss against tokens and FLOPs.

    python -m benchmarks.structures [--quick] [--json] [--folder runs/structures]

Text is the Python standard library's source. The causal decoder learns every token of its rows; the
prefix decoder and the encoder-decoder split each document at a random place and learn the rest. All
are judged alike: the loss of the rest of held-out documents, given their first part, at the same
splits. Parameters are equal: an encoder-decoder's feed-forward layers are narrower by what its
cross-attention weighs. A structure that is done is not run again; the last writes the plot.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from megalite.cli import main as megalite
from megalite.data.corpus.packed_documents import PackedDocuments, Room
from megalite.data.corpus.store import TokenStore
from megalite.data.corpus.windows import Windows
from megalite.data.example import collate
from megalite.data.loader import Loader, Share
from megalite.data.objectives.prefix_lm import PrefixLM
from megalite.data.structure import Structure
from megalite.data.tokenizers.load import load_tokenizer
from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import build_model
from megalite.engine.model import Task
from megalite.models.batch import Batch
from megalite.models.config import ModelConfig
from megalite.models.outputs import Loss
from megalite.tools.stdlib_corpus import write_corpus
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.learner import Learner, Learning
from megalite.training.metrics.flops import step_operations

NAMES = ("causal decoder", "prefix decoder", "encoder-decoder")
WIDTH, LAYERS, HEADS, VOCABULARY, SEED = 128, 4, 4, 2048, 0
COLOURS = ("#2563a8", "#c8541f", "#3c8c4a")


@dataclass(frozen=True)
class Budget:
    """How much is trained.

    Attributes:
        steps: optimizer steps.
        rows: of a step.
        length: tokens of a row.
        evaluate_every: steps between evaluations.
        heldout_rows: rows of an evaluation.
    """

    steps: int = 400
    rows: int = 8
    length: int = 256
    evaluate_every: int = 40
    heldout_rows: int = 48


def model_config(name: str) -> ModelConfig:
    """A model of this structure; all have the same number of parameters."""
    is_encoder_decoder = name == "encoder-decoder"
    layers = LAYERS // 2 if is_encoder_decoder else LAYERS
    return ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_heads=HEADS,
        num_layers=layers,
        num_encoder_layers=layers if is_encoder_decoder else 0,
        ffn_size=(3 if is_encoder_decoder else 4) * WIDTH,
        gated=False,
        activation="gelu",
    )


def prepare(folder: Path, budget: Budget) -> None:
    """Write the corpus, its tokenizer and stores, once."""
    if (folder / "heldout.idx").exists():
        return
    write_corpus(folder, SEED, 3 * budget.steps * budget.rows * budget.length)
    text = f'["{folder}/pretrain.train.jsonl"]'
    words = ["tokenizer", "train", "--source", text, "--vocab_size", str(VOCABULARY)]
    run([*words, "--max_bytes", "3000000", "--output", f"{folder}/tokenizer"])
    for part in ("train", "heldout"):
        source = f'["{folder}/pretrain.{part}.jsonl"]'
        words = ["data", "prepare", "--source", source, "--tokenizer", f"{folder}/tokenizer"]
        run([*words, "--output", f"{folder}/{part}", "--processes", "2"])


def run(words: list[str]) -> None:
    """Run a command in this process; it must succeed."""
    if code := megalite(words):
        raise SystemExit(code)


class Run:
    """One structure's training."""

    def __init__(self, name: str, folder: Path, budget: Budget) -> None:
        """Build the model and open the text."""
        self._budget, self._config = budget, model_config(name)
        mesh = Mesh.single()
        self._model = build_model(self._config, mesh, ParallelConfig(), seed=SEED)
        rows = budget.rows
        train = TrainConfig(steps=budget.steps, global_batch_size=rows, micro_batch_size=rows)
        rates = OptimizerConfig(learning_rate=2e-3), ScheduleConfig(warmup=0.1)
        self._learner = Learner(self._model, mesh, Learning(train, *rates, SEED))
        start = load_tokenizer(folder / "tokenizer").end_id or 0
        structure = Structure(name == NAMES[2], name == NAMES[1], start)
        room = Room(budget.length, budget.length)
        objective, store = PrefixLM(structure), TokenStore(folder / "train")
        if name == NAMES[0]:
            self._train: Windows | PackedDocuments = Windows(store, budget.length)
        else:
            self._train = PackedDocuments(store, objective, room, SEED)
        held = PackedDocuments(TokenStore(folder / "heldout"), objective, room, SEED)
        count = min(budget.heldout_rows, len(held))
        chosen = [number * len(held) // count for number in range(count)]
        self._heldout = [
            self._rows([held[n] for n in chosen[at : at + rows]], range(rows))
            for at in range(0, count, rows)
        ]

    def _rows(self, examples, numbers) -> Batch:
        length = self._budget.length
        encoder = length if self._config.is_encoder_decoder else 0
        return collate(examples, list(numbers)[: len(examples)], length, encoder)

    def curve(self) -> dict:
        """Train; give the facts and the points of the curve."""
        budget, totals = self._budget, {"tokens": 0, "targets": 0, "tflop": 0.0}
        share = Share(budget.rows, budget.rows)
        loader = iter(Loader(self._train, self._rows, share, seed=SEED))
        points = [totals | {"loss": self._heldout_loss()}]
        for step in range(1, budget.steps + 1):
            (batch,) = next(loader)
            targets = batch.num_targets
            consumed = (step - 1) * budget.rows
            self._learner.step([(batch, None)], lambda s: Task(Loss(s)), targets, consumed)
            totals["tokens"] += num_tokens(batch)
            totals["targets"] += targets
            totals["tflop"] += step_operations(self._config, batch).model / 1e12
            if step % budget.evaluate_every == 0:
                points.append(totals | {"loss": self._heldout_loss()})
        loader.close()
        parameters = sum(p.numel() for p in self._model.parameters())
        outputs = sum(batch.num_targets for batch in self._heldout)
        return {"parameters": parameters, "heldout_outputs": outputs, "points": points}

    def _heldout_loss(self) -> float:
        total = torch.stack(self._model.evaluate(self._heldout, Loss())).sum()
        return float(total) / sum(batch.num_targets for batch in self._heldout)


def num_tokens(batch: Batch) -> int:
    """Rows of both streams that aren't padding."""
    count = (~batch.decoder.mask.is_empty).sum()
    if batch.encoder is not None:
        count = count + (~batch.encoder.mask.is_empty).sum()
    return int(count)


def curve_of(name: str, folder: Path, budget: Budget) -> dict:
    """The curve of a structure, from its file where it has been run with this budget."""
    path = folder / f"{name.replace(' ', '-')}.json"
    stamp = asdict(budget) | {"model": model_config(name).model_dump()}
    if path.exists() and (found := json.loads(path.read_text()))["stamp"] == stamp:
        return found
    found = {"stamp": stamp, "name": name} | Run(name, folder, budget).curve()
    path.write_text(json.dumps(found))
    return found


def needed(points: list[dict], loss: float, unit: str) -> float | None:
    """How much of ``unit`` a curve takes to this loss, between its points; None: more than all."""
    for before, after in zip(points, points[1:], strict=False):
        if after["loss"] <= loss:
            share = (before["loss"] - loss) / max(before["loss"] - after["loss"], 1e-9)
            return before[unit] + min(max(share, 0.0), 1.0) * (after[unit] - before[unit])
    return None


def summary(curves: list[dict]) -> list[dict]:
    """A row a structure: its end, and what it took to where the worst ended."""
    worst = max(curve["points"][-1]["loss"] for curve in curves)
    rows = []
    for curve in curves:
        last = curve["points"][-1]
        row = {"structure": curve["name"], "parameters": curve["parameters"]}
        row |= {"tokens": last["tokens"], "targets": last["targets"], "tflop": last["tflop"]}
        row |= {"heldout_loss": last["loss"], "worst_loss": worst}
        row |= {f"{u}_to_worst": needed(curve["points"], worst, u) for u in ("tokens", "tflop")}
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """The summary in Markdown."""
    worst = rows[0]["worst_loss"]
    lines = [
        "| structure | parameters | tokens read | learned | TFLOP | held-out loss | "
        f"tokens to {worst:.2f} | TFLOP to {worst:.2f} |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['structure']} | {row['parameters']:,} | {row['tokens']:,} | "
            f"{row['targets'] / row['tokens']:.0%} | {row['tflop']:.2f} | "
            f"{row['heldout_loss']:.3f} | {row['tokens_to_worst']:,.0f} | "
            f"{row['tflop_to_worst']:.2f} |"
        )
    return "\n".join(lines)


def plot(curves: list[dict], path: Path) -> None:
    """Draw loss against tokens and against FLOPs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    units = (("tokens", 1e6, "million tokens read"), ("tflop", 1.0, "TFLOP"))
    for panel, (unit, scale, label) in zip(panels, units, strict=True):
        for curve, colour in zip(curves, COLOURS, strict=True):
            points = curve["points"][1:]
            x = [point[unit] / scale for point in points]
            y = [point["loss"] for point in points]
            panel.plot(x, y, "o-", color=colour, label=curve["name"], markersize=3, linewidth=1.6)
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
        panel.set_xlim(left=0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out loss of outputs (nats a token)")
    panels[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--folder", type=Path, default=Path("runs/structures"))
    parser.add_argument("--plot", type=Path, help="image file; default: in the folder")
    parser.add_argument("--structure", choices=NAMES, help="run this one only")
    options = parser.parse_args()
    budget = Budget()
    folder = options.folder
    if options.quick:
        budget = replace(budget, steps=40, evaluate_every=8, heldout_rows=16)
        folder = folder.with_name(f"{folder.name}-quick")
    prepare(folder, budget)
    if options.structure:
        curve_of(options.structure, folder, budget)
        return
    curves = [curve_of(name, folder, budget) for name in NAMES]
    plot(curves, options.plot or folder / "structures.png")
    rows = summary(curves)
    print("\n".join(map(json.dumps, rows)) if options.json else table(rows), flush=True)


if __name__ == "__main__":
    main()
