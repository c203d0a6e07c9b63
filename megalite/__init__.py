"""megalite: train encoder-decoders, causal decoders and prefix decoders at any scale."""

__version__ = "0.1.0"
