"""The arithmetic of reinforcement learning from human feedback, apart from any model."""
