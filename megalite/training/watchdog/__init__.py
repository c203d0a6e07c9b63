"""Notices when a process of a run is dead, hung or out of step, and says which."""
