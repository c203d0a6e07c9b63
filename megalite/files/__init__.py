"""What is in a file, in a few letters; files elsewhere, and their copies on this machine."""
