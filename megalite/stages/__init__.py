"""The four stages of building an assistant."""
