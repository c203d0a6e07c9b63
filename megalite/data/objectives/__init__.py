"""What of a document is read and what is learned; docs/objectives.md describes them."""
