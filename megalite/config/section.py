"""The base of every config section."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen, strict group of config values; unknown keys are refused.

    Each field carries a ``Field(default, description=...)`` that names its unit; derived numbers are properties.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)
