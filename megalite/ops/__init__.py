"""Operations: masked attention, cross-entropy, RoPE, dropout; one file an op."""
