"""``megalite models``: the published sizes that ``--model.preset`` knows."""

from pydantic import Field

from megalite.config.section import Section
from megalite.distributed.launch import Launch
from megalite.errors import ConfigError
from megalite.models.config import ModelConfig
from megalite.models.families import FAMILIES
from megalite.models.size import num_parameters


class ModelsConfig(Section):
    """Which presets are listed."""

    name: str = Field("", description="part of a preset's name, or a family's name; empty: all")


def run(config: ModelsConfig, launch: Launch) -> int:
    """Print a line for each preset: name, family, parameters, source."""
    lines = [
        (name, family.name, f"{num_parameters(ModelConfig(preset=name)):,}", preset.source)
        for family in FAMILIES.values()
        for name, preset in family.presets.items()
        if config.name in name or config.name == family.name
    ]
    if not lines:
        raise ConfigError(f"--name {config.name}: no preset is named so; leave it out for all")
    if launch.rank == 0:
        widths = [max(len(line[i]) for line in lines) for i in range(3)]
        for name, family, count, source in lines:
            text = f"{name:<{widths[0]}}  {family:<{widths[1]}}  {count:>{widths[2]}}  {source}"
            print(text)  # noqa: T201
    return 0
