"""What a GPU says about megalite, in minutes: is it right, and how fast (docs/gpu.md)."""
