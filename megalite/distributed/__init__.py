"""The processes of a run: which they are, how they are laid out, what they say to each other."""
