"""Meshes, collectives and the layers that are sharded over them."""
