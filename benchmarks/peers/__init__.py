"""The programs satrap is compared with, run by their own interpreters: `python -m benchmarks.peers.NAME`.

May import: the standard library, numpy, torch, the peer, `benchmarks.harness`. Must never import satrap or pyarrow.
`compare` (`python -m benchmarks peers`) runs them beside satrap; it alone imports other benchmarks.
"""


def main(argv: list[str]) -> int:
    """`python -m benchmarks peers`."""
    from benchmarks.peers import compare

    return compare.main(argv)
