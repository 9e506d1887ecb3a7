"""From trajectories and embeddings to edits: balanced attention and the methods beside it."""
