"""Files of a run's folder that a stage writes and the report reads."""

RANKINGS = "rankings.json"  # what a reward model made of held-out rankings
