"""Conversations, rankings and prompts: what files hold, how they are written, what is learned."""
