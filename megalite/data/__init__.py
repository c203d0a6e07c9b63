"""From raw documents to batches."""
