"""Reading, overriding, checking and writing configs; a section stands beside its code."""

from megalite.config.dump import describe, dump
from megalite.config.load import load
from megalite.config.section import Section

__all__ = ["Section", "describe", "dump", "load"]
