"""Text to token ids and back, by the library that a tokenizer was made with."""
