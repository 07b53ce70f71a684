"""The command line: parse, call, print.

Owns: the commands, their help, how results and errors look on a terminal, exit codes.
May import: every room, inside the function that needs it, so that `satrap --help` loads neither torch nor pyarrow.
Must never: hold logic of training, data or storage; what it shows, the Python API can be asked for too.

Exit codes: 0 done, 1 an error that is explained on stderr, 2 wrong usage, 130 ended by Ctrl-C.
"""

from satrap.cli.app import app, main

__all__ = ["app", "main"]
