"""Reinforcement learning from human feedback: rollouts, rewards, losses and PPO's step."""
