"""GRPO: groups of answers to each prompt, learned by how their scores compare; no critic.

RLOO, REINFORCE++ and Dr. GRPO are other advantages of the same loop, which is PPO's.

Source: Shao et al. 2024, arXiv:2402.03300.
"""

from megalite.stages.ppo import run
from megalite.stages.rlhf.config import GRPOConfig

__all__ = ["GRPOConfig", "run"]
