"""What of a document is read and what is learned; docs/objectives.md says how they fit together."""
