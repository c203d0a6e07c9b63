"""Update rules beside AdamW: Adafactor, Lion, Muon; each the same in every layout."""
