"""Data: from the user's files to batches.

Owns: sources, decoding, id hashing, scaling, shuffling, positions, inference of a job from a file.
May import: schema, observe, errors. Must never: import torch, look up a row.
"""
