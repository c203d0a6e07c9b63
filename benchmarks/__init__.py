"""Speed claims: each module runs ours and a peer in one go and prints their ratio."""
