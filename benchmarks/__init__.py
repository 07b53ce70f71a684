"""Benchmarks: `python -m benchmarks NAME [--smoke]`.

Owns: what satrap is measured with: the synthetic clicks, the meters, the sides it is compared with. Every line printed
is a JSON object; the first holds the configuration, the last the headline figures and a hash of what was computed.
May import: satrap's public rooms, numpy, torch. Must never: be imported by satrap, or assert on a time.

`benchmarks.peers` runs in other virtual environments, where neither satrap nor pyarrow is installed: it and
`benchmarks.harness` import nothing beyond the standard library, numpy and torch.
"""
