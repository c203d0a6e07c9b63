"""Devices, and the networks between their nodes, as data."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A device as its data sheet has it.

    Attributes:
        kind: whose constants it is timed with.
        half_tflops: dense products of bf16 or fp16, TFLOP/s.
        single_tflops: products of fp32, TFLOP/s.
        memory_gib: what nvidia-smi shows, less what the driver keeps.
        memory_gb_s: of its memory, GB/s.
        link_gb_s: to the other devices of its node, GB/s in one direction.
        multiprocessors: tiles that it computes at a time.
        watts: at most.
        has_bf16: whether it computes in bf16.
        source: of these numbers.
        is_host: whether it is a core of the host, which computes, launches and communicates in
            turns: nothing of it hides behind another.
    """

    kind: str
    half_tflops: float
    single_tflops: float
    memory_gib: float
    memory_gb_s: float
    link_gb_s: float
    multiprocessors: int
    watts: float
    has_bf16: bool
    source: str
    is_host: bool = False


_MEMORY = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
_A100 = "NVIDIA A100 datasheet, 2021 (nvidia-a100-datasheet-us-nvidia-1758950-r4)"
_V100 = "NVIDIA V100 datasheet, 2020 (v100-datasheet-update-us-1165301-r5)"
_H100 = "NVIDIA H100 datasheet, 2023 (h100-datasheet-2430615); H100 whitepaper for SMs"

DEVICES = {
    "a100-80gb": Device("a100", 312, 19.5, 79.0, 2039, 300, 108, 400, True, _A100),
    "a100-40gb": Device("a100", 312, 19.5, 39.4, 1555, 300, 108, 400, True, _A100),
    "a800-80gb": Device(
        "a100", 312, 19.5, 79.0, 2039, 200, 108, 400, True, _A100 + "; NVLink of 400 GB/s"
    ),
    "h100-80gb": Device("h100", 989, 66.9, 79.0, 3350, 450, 132, 700, True, _H100),
    "h200-141gb": Device(
        "h100", 989, 66.9, 139.8, 4800, 450, 132, 700, True, "NVIDIA H200 datasheet, 2024"
    ),
    "v100-32gb": Device("v100", 125, 15.7, 31.7, 900, 150, 80, 300, False, _V100),
    "v100-16gb": Device("v100", 125, 15.7, 15.7, 900, 150, 80, 300, False, _V100),
    "v100-32gb-pcie": Device("v100", 112, 14.0, 31.7, 900, 16, 80, 250, False, _V100),
    "v100-16gb-pcie": Device("v100", 112, 14.0, 15.7, 900, 16, 80, 250, False, _V100),
}

CPU = Device(
    kind="cpu",
    half_tflops=0.05,
    single_tflops=0.05,
    memory_gib=round(_MEMORY / 2**30, 1),
    memory_gb_s=10.0,
    link_gb_s=0.7,
    multiprocessors=1,
    watts=0.0,
    has_bf16=True,
    source="a core with AVX2 in round numbers, which a calibration scales; gathers of gloo between "
    "two processes of a machine, measured 2026-11-28",
    is_host=True,
)


@dataclass(frozen=True)
class Network:
    """What a node has towards others.

    Attributes:
        gbit_s: of an adapter in one direction, Gbit/s.
        rails: adapters of a node that one collective uses; 0: all. Collectives side by side use as
            many together as there are.
        source: of these numbers.
        is_onload: whether the node's CPUs move the data.
    """

    gbit_s: float
    rails: int
    source: str
    is_onload: bool = False


NETWORKS = {
    "ib-100": Network(100, 0, "InfiniBand EDR, IBTA roadmap"),
    "ib-200": Network(200, 0, "InfiniBand HDR, IBTA roadmap"),
    "ib-400": Network(400, 0, "InfiniBand NDR, IBTA roadmap"),
    "ib-800": Network(800, 0, "InfiniBand XDR, IBTA roadmap"),
    "roce-100": Network(100, 0, "Ethernet of 100 Gbit/s with RoCE v2, IEEE 802.3bm"),
    "roce-200": Network(200, 0, "Ethernet of 200 Gbit/s with RoCE v2, IEEE 802.3bs"),
    "roce-400": Network(400, 0, "Ethernet of 400 Gbit/s with RoCE v2, IEEE 802.3bs"),
    "efa-100": Network(100, 0, "AWS p4d.24xlarge: 4 adapters of 100 Gbit/s"),
    "efa-400": Network(100, 0, "AWS p5.48xlarge: 32 adapters of 100 Gbit/s"),
    "omni-path-100": Network(
        100,
        1,
        "bigscience tr11-176B-ml/chronicles-prequel.md@cfc6c6f: an all-reduce over 4 nodes of 4 "
        "adapters had 40 Gbit/s, which is what one adapter gives",
        is_onload=True,
    ),
}


@dataclass(frozen=True)
class Cluster:
    """Devices in nodes.

    Attributes:
        device: of each process.
        network: between nodes.
        per_node: devices of a node.
        adapters: of a node's network.
    """

    device: Device
    network: Network
    per_node: int = 8
    adapters: int = 8

    @property
    def node_gb_s(self) -> float:
        """Of a node towards the others, GB/s in one direction."""
        return self.network.gbit_s / 8 * self.adapters
