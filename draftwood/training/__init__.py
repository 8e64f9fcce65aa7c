"""Training a DFlash draft for a target, on text that the target wrote itself (an optional extra).

A run has four stages, each resumable from what the one before left in the run's folder: `generate` plays scripts of
prompts with the target and keeps the ids, `train` fits the draft, `evaluate` replays rounds over held-out text and
prints every control beside the result, `export` writes the GGUF.
"""
