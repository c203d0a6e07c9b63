"""Configuration machinery; each section stands beside the code that it configures."""

from megalite.config.section import Section

__all__ = ["Section"]
