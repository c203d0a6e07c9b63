"""The one trainer: loop, learner, optimizer, checkpoints, metrics, watchdog."""
