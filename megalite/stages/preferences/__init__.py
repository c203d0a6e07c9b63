"""Learning from preferences without a reward model: losses, references, the step."""
