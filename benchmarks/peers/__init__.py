"""The programs satrap is compared with, run by their own interpreters: `python -m benchmarks.peers.NAME`.

May import: the standard library, numpy, torch, the peer, `benchmarks.harness`. Must never import satrap or pyarrow.
"""
