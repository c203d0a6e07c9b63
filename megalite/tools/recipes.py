"""``megalite recipes``: the published recipes, each a config that any command takes by its name."""

from pydantic import Field

from megalite.config.bases import PREFIX, recipe_names
from megalite.config.load import read_based
from megalite.config.section import Section
from megalite.distributed.launch import Launch
from megalite.errors import ConfigError

COLUMNS = ("system", "structure", "stage", "length", "devices", "source")


class RecipesConfig(Section):
    """Which recipes are listed."""

    name: str = Field(
        "", description="part of a recipe's name, its system, stage or structure; empty: all"
    )


def run(config: RecipesConfig, launch: Launch) -> int:
    """Print a line for each recipe: name, system, structure, stage, length, devices, source."""
    lines = [line for line in listed() if any(config.name.lower() in word for word in _words(line))]
    if not lines:
        raise ConfigError(f"--name {config.name}: no recipe is named so; leave it out for all")
    if launch.rank == 0:
        head = ("name", *COLUMNS)
        widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
        for line in [head, *lines]:
            text = "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True))
            print(text.rstrip())  # noqa: T201
    return 0


def listed() -> list[tuple[str, ...]]:
    """The name and ``COLUMNS`` of every recipe."""
    found = []
    for name in recipe_names():
        table = read_based(PREFIX + name).recipe
        found.append((name, *(str(table.get(key, "")) for key in COLUMNS)))
    return found


def _words(line: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word.lower() for word in line[:4])
