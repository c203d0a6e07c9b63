"""Disassembled kernels: instructions, blocks, and the path that an iteration of a loop takes.

Blocks end at branches; a loop is a strongly connected part of the graph of blocks, and the loops
inside it are those that remain without its first block. A loop that counts to a constant stands for
as many copies of its body.

Of the paths through an iteration the hot one has the most tensor-core instructions, then the most
copies of tiles, and otherwise the fewest instructions: of tiles with and without a mask the one
without, of tests whether a tile is to be fetched the one that fetches.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cached_property

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
LABEL = re.compile(r"`\((\.L_x_\d+)\)")
IMMEDIATE = re.compile(r"-?0x[0-9a-f]+$")


@dataclass(frozen=True)
class Instruction:
    """One line: ``@!P0 LDS.128 R4, [R2+0x10]`` is ``@!P0``, ``LDS.128`` and the operands."""

    predicate: str
    opcode: str
    operands: tuple[str, ...]

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".", 1)[0]

    @property
    def never_runs(self) -> bool:
        """Whether the predicate is false whatever happens."""
        return self.predicate == "@!PT"

    @property
    def target(self) -> str | None:
        """The label that it may go to."""
        if self.name not in ("BRA", "CALL"):
            return None
        found = LABEL.search(self.operands[-1])
        return found.group(1) if found else None

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction may follow."""
        if self.name in ("EXIT", "RET"):
            return bool(self.predicate)
        return self.target is None or bool(self.predicate) or len(self.operands) > 1

    @property
    def is_tensor(self) -> bool:
        """Whether tensor cores do it."""
        return self.name == "HMMA"

    @property
    def is_copy(self) -> bool:
        """Whether it moves 16 bytes a lane from global memory."""
        return self.name == "LDGSTS" or (self.name == "LDG" and "128" in self.opcode.split("."))


@dataclass
class Block:
    """Instructions that run one after the other, and the numbers of the blocks that may follow."""

    instructions: list[Instruction]
    next: list[int] = field(default_factory=list)

    @cached_property
    def path(self) -> "Path":
        """The block as a path."""
        return Path.of(Counter(self.instructions))


@dataclass(frozen=True)
class Path:
    """Instructions by how often they run, and what paths are compared by."""

    counts: Counter[Instruction]
    key: tuple[int, int, int]

    @classmethod
    def of(cls, counts: Counter[Instruction]) -> "Path":
        """With its key: tensor-core instructions, copies, and minus their number."""
        tensor = sum(n for i, n in counts.items() if i.is_tensor)
        copies = sum(n for i, n in counts.items() if i.is_copy)
        return cls(counts, (tensor, copies, -counts.total()))

    def followed_by(self, other: "Path") -> "Path":
        """Both, one after the other."""
        return Path.of(self.counts + other.counts)

    def repeated(self, times: int) -> "Path":
        """The same, several times."""
        return Path.of(Counter({i: n * times for i, n in self.counts.items()}))


@dataclass
class Loop:
    """A loop: its blocks, the first of them, the loops inside, and how often it runs if known."""

    blocks: set[int]
    first: int
    inside: list["Loop"]
    trips: int | None
    hot: Path


def parse(text: str) -> dict[str, list[Block]]:
    """The blocks of each kernel of ``nvdisasm -c``, by mangled name."""
    kernels: dict[str, list[Block]] = {}
    for section in re.split(r"^\.text\.", text, flags=re.M)[1:]:
        symbol, body = section.split(":", 1)
        kernels[symbol] = _blocks(body)
    return kernels


def _blocks(body: str) -> list[Block]:
    blocks, labels = [Block([])], {}
    for line in body.splitlines():
        if line.startswith("."):
            if blocks[-1].instructions:
                blocks.append(Block([]))
            labels[line.rstrip(":").strip()] = len(blocks) - 1
        found = LINE.match(line)
        if not found:
            continue
        _, predicate, opcode, operands = found.groups()
        parts = tuple(part.strip() for part in operands.split(",")) if operands else ()
        instruction = Instruction(predicate or "", opcode, parts)
        blocks[-1].instructions.append(instruction)
        if instruction.target or instruction.name in ("EXIT", "RET"):
            blocks.append(Block([]))
    for number, block in enumerate(blocks):
        last = block.instructions[-1] if block.instructions else None
        if (last is None or last.falls_through) and number + 1 < len(blocks):
            block.next.append(number + 1)
        if last and last.target in labels:
            block.next.append(labels[last.target])
    return blocks


def _components(nodes: set[int], blocks: list[Block], without: int | None) -> list[set[int]]:
    """Strongly connected parts of ``nodes``, without edges to one; sinks first (Tarjan)."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    found: list[set[int]] = []
    for root in sorted(nodes):
        work = [(root, iter(_followers(root, nodes, blocks, without)))] if root not in order else []
        if work:
            order[root] = low[root] = len(order)
            stack.append(root)
        while work:
            node, rest = work[-1]
            child = next(rest, None)
            if child is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    at = stack.index(node)
                    found.append(set(stack[at:]))
                    del stack[at:]
            elif child not in order:
                order[child] = low[child] = len(order)
                stack.append(child)
                work.append((child, iter(_followers(child, nodes, blocks, without))))
            elif child in stack:
                low[node] = min(low[node], order[child])
    return found


def _followers(node: int, nodes: set[int], blocks: list[Block], without: int | None) -> list[int]:
    return [n for n in blocks[node].next if n in nodes and n != without]


def _trips(blocks: list[Block], nodes: set[int], inside: list[Loop]) -> int | None:
    """How often a loop runs that counts a register from 0 up to a constant and ends there."""
    own = nodes.difference(*(loop.blocks for loop in inside))
    code = [(i, n) for n in sorted(own) for i in blocks[n].instructions]
    steps = {
        i.operands[0]: int(i.operands[2], 16)
        for i, _ in code
        if i.name == "IADD3" and i.operands[0] == i.operands[1] and IMMEDIATE.match(i.operands[2])
    }
    for at, (branch, n) in enumerate(code):
        if not branch.target or not branch.predicate or nodes.issuperset(blocks[n].next):
            continue
        predicate = branch.predicate.lstrip("@!")
        before = (i for i, _ in reversed(code[:at]))
        test = next((i for i in before if predicate in i.operands[:2]), None)
        if test is None or test.name != "ISETP" or not IMMEDIATE.match(test.operands[3]):
            continue
        step, end = steps.get(test.operands[2], 0), int(test.operands[3], 16)
        if step > 0 and end > 0:
            return end // step
    return None


def loops(blocks: list[Block], nodes: set[int] | None = None, without: int | None = None):
    """The outermost loops among ``nodes``, each with those inside it.

    Args:
        blocks: of a kernel.
        nodes: numbers of blocks; all by default.
        without: edges to this block don't count.

    Returns:
        A list of ``Loop``.
    """
    nodes = set(range(len(blocks))) if nodes is None else nodes
    found = []
    for part in _components(nodes, blocks, without):
        node = min(part)
        if len(part) == 1 and (node == without or node not in blocks[node].next):
            continue
        entries = {
            n
            for other, block in enumerate(blocks)
            if other not in part
            for n in block.next
            if n in part
        }
        first = min(entries or part)
        inside = loops(blocks, part, first)
        hot = _hot_path(blocks, part, first, inside)
        found.append(Loop(part, first, inside, _trips(blocks, part, inside), hot))
    return found


def _hot_path(blocks: list[Block], nodes: set[int], first: int, inside: list[Loop]) -> Path:
    """The best path of an iteration: from the first block to one that goes back to it."""
    holder = {n: loop for loop in inside for n in loop.blocks}
    best: dict[int, Path] = {}
    whole: list[Path] = []
    into: dict[int, list[Path]] = defaultdict(list)
    for part in reversed(_components(nodes, blocks, first)):  # sources first
        node = min(part)
        loop = holder.get(node)
        own = loop.hot.repeated(loop.trips or 1) if loop else blocks[node].path
        before = [p for n in part for p in into[n]]
        if first not in part and not before:
            continue
        start = max(before, key=lambda p: p.key) if before else None
        best[node] = start.followed_by(own) if start else own
        for n in part:
            for follower in blocks[n].next:
                if follower == first:
                    whole.append(best[node])
                elif follower in nodes and follower not in part:
                    into[follower].append(best[node])
    return max(whole, key=lambda p: p.key)


def hottest(blocks: list[Block]) -> Path | None:
    """The hot path of the loop that a kernel spends its time in.

    That is an innermost loop with tensor-core instructions, counted loops taken as part of what is
    around them; of several the one with the most of them, then with the fewest instructions.
    """
    candidates: list[Path] = []

    def visit(loop: Loop) -> bool:
        """Whether the loop or one inside is a candidate."""
        has_candidate = any([visit(each) for each in loop.inside])
        if has_candidate:
            return True
        if loop.trips is None and loop.hot.key[0]:
            candidates.append(loop.hot)
            return True
        return False

    for loop in loops(blocks):
        visit(loop)
    return max(candidates, key=lambda p: p.key, default=None)
