"""Pictures of results for people: plots, labelled grids, captions.

Numbers and PIL pictures go in, PIL pictures come out; no host, no model.
"""
