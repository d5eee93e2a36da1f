"""The operator's commands: `python -m functions.cli COMMAND`, or `make COMMAND`.

Each works on the local stack that `make run` keeps up, or with `--stack` on a deployed one. Nothing
here is part of a function: the commands use the package's adapters with the operator's credentials.

    __main__        the command line: which commands there are, and how an error is shown
    arguments       the parser, in the words of `make` or of Python, and the types of values
    stack           which stack, its clients and resources
    errors          an error of AWS as a sentence with the way out
    output          tables, blocks, facts and progress, at any width
    words           commands as they are typed, to `make` or to Python
    status, publishing, following, notifications, evidence, dead_letters, bots, webhook, forgetting,
    ledger, deployment
                    the commands: what each does, then how it is shown
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The package is in no environment; Lambda finds it in its layer.
sys.path.insert(0, str(ROOT / "layers/notifier"))
