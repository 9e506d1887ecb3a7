"""The numerical core of BARET (arXiv 2312.05482): torch only, no host, no state.

Every process is a pure function over a :class:`~.predict.Predict` callable. Notation as in the paper:
``z`` is a latent in variance-preserving form, ``x = z * sqrt(1 + sigma**2)`` the same latent as
samplers hold it, step index ``i`` counts from the noisiest level.
"""
