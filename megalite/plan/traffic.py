"""Seconds of collectives and sends, from the bytes that pass a device's and a node's links."""

import math
from dataclasses import dataclass

from megalite.plan.constants import Constants
from megalite.plan.devices import Cluster


@dataclass(frozen=True)
class Group:
    """Processes that communicate.

    Attributes:
        size: how many.
        stride: devices between neighbours; the groups that start between them run beside this one.
    """

    size: int
    stride: int

    def nodes(self, per_node: int) -> int:
        """Nodes that it spans."""
        return math.ceil(self.size / self.here(per_node))

    def here(self, per_node: int) -> int:
        """Of its processes in a node."""
        return max(min(self.size, per_node // self.stride), 1)


@dataclass(frozen=True)
class Links:
    """What a cluster's links take for collectives.

    Attributes:
        cluster: devices, nodes and network.
        constants: how much of their links collectives get.
    """

    cluster: Cluster
    constants: Constants

    def gather(self, bytes_: float, group: Group) -> float:
        """Seconds in which each of a group gets all of ``bytes_``, or gives its sum.

        An all-gather and a reduce-scatter alike; an all-reduce is both.
        """
        if group.size == 1 or bytes_ <= 0:
            return 0.0
        per_node, constants = self.cluster.per_node, self.constants
        here, nodes = group.here(per_node), group.nodes(per_node)
        share = (group.size - 1) / group.size
        inside = bytes_ * share / (1e9 * self.cluster.device.link_gb_s * constants.link)
        steps = constants.collective_s * (1.0 + math.log2(group.size) / 4)
        if nodes == 1:
            return inside + steps
        beside = min(per_node / here, group.stride)  # groups that share the node's network
        outside = bytes_ * (nodes - 1) / nodes * beside / self._node_bytes_s(beside)
        return max(inside if here > 1 else 0.0, outside) + steps * (1 + math.log2(nodes) / 2)

    def _node_bytes_s(self, groups: float) -> float:
        """What a node's network gives so many collectives side by side."""
        cluster, rails = self.cluster, self.cluster.network.rails
        used = min(cluster.adapters, rails * groups) if rails else cluster.adapters
        return 1e9 * cluster.node_gb_s * self._share * used / cluster.adapters

    @property
    def _share(self) -> float:
        constants = self.constants
        return constants.onload if self.cluster.network.is_onload else constants.network

    def reduce(self, bytes_: float, group: Group) -> float:
        """Seconds of an all-reduce."""
        return 2.0 * self.gather(bytes_, group)

    def send(self, bytes_: float, stride: int) -> float:
        """Seconds to the process ``stride`` devices on, while all others of the node send too."""
        if bytes_ <= 0:
            return 0.0
        cluster, constants = self.cluster, self.constants
        rate = 1e9 * cluster.device.link_gb_s * constants.link
        if stride >= cluster.per_node:
            rate = 1e9 * cluster.node_gb_s * self._share / cluster.per_node
        return bytes_ / rate + constants.collective_s
