"""The one trainer: loop, optimizer, schedule, precision, checkpoints, metrics."""
