"""Parameter service: rows by id, pulled and pushed.

Owns: the `ParameterService` and `RowStorage` protocols and their implementations. May import: store, schema, observe,
errors. Must never: import torch or know of batches, features or pooling.
"""
