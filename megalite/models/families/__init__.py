"""Families of published models: presets, and tables of their names for our parameters."""

from megalite.models.families import bart, bloom, falcon, gpt2, llama, opt, t5
from megalite.models.families.table import Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (llama, gpt2, opt, bloom, falcon, t5, bart)
}
