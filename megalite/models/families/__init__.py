"""Families of published models: presets, and tables of their names for our parameters."""

from megalite.models.families import gpt2, llama
from megalite.models.families.table import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (llama.FAMILY, gpt2.FAMILY)}
