"""Training a DFlash draft for a target, on text that the target wrote itself (an optional extra).

A run has stages, each starting from what the one before left in the run's folder: `scripts` draws prompts, `generate`
lets the target play them and keeps the ids, `clean` filters, `fit` trains the draft, `evaluate` replays rounds over
held-out text and prints every control beside the result, `export` writes the GGUF, `card` the model card.
"""
