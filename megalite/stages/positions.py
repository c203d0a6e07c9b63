"""Whether a model has as many positions as a stage's samples have rows."""

from megalite.errors import ConfigError
from megalite.models.config import ModelConfig


def check_positions(model: ModelConfig, rows: int, key: str, whose: str = "model") -> None:
    """Refuse more rows than a table of positions has.

    Args:
        model: shape of the model.
        rows: of the longest stream.
        key: where they come from, and what else is in them.
        whose: key that names the model.

    Raises:
        ConfigError: it names both numbers.
    """
    if model.has_position_table and rows > model.max_positions:
        raise ConfigError(
            f"--{key}: needs {rows} positions, {whose}.max_positions is {model.max_positions}: "
            "shorten it"
        )
