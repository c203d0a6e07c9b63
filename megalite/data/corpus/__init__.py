"""Text for pretraining: raw documents, token stores, and the samples that are read from them."""
