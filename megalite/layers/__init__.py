"""Layers whose parameters are split over tensor-parallel processes."""
