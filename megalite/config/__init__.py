"""Configuration machinery; each section stands beside the code that it configures."""

from megalite.config.dump import describe, dump
from megalite.config.load import load
from megalite.config.section import Section

__all__ = ["Section", "describe", "dump", "load"]
