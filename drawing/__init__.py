"""Pictures of results for people: plots, labelled grids, captions. Numbers and PIL pictures in, PIL pictures out; no host, no model."""
