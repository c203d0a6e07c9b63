"""A run's folder belongs to one run: who writes into it, which run it is of, what that took."""
