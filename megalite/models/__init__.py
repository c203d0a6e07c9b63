"""The model: a list of blocks described by one ModelConfig."""
