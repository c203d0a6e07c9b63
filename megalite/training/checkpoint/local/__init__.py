"""Checkpoints on the nodes' own disks, each with a copy on a neighbour node."""
