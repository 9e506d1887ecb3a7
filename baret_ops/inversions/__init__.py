"""From pictures to trajectories and embeddings: DDIM inversion, and what tunes a text or leaves it as it is."""
