"""Pretraining objectives: what of a document is read and what is learned (docs/objectives.md)."""
