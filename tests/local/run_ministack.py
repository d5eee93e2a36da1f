"""Run ministack so that nothing of it outlives the process that started it.

Runs under the interpreter of `.venv-ministack`, in a process group of its own. That process holds
the other end of our standard input: however it ends, the pipe closes, and ministack goes with the
sandboxes of its functions, which are in the same group.
"""

import hashlib
import os
import signal
import sys
import tempfile
import threading
import types
import zipfile
from pathlib import Path
from typing import Any

from ministack.app import main  # type: ignore[import-not-found]
from ministack.core import lambda_runtime  # type: ignore[import-not-found]


class _Archive(zipfile.ZipFile):
    """Unpacks every layer once, for all sandboxes.

    ministack unpacks the layers anew for each sandbox, one file after the other in one process. The
    first five sandboxes would keep the first requests waiting for up to ten seconds.
    """

    _unpacking = threading.Lock()
    _layers = Path(tempfile.gettempdir()) / "layers"

    def extractall(self, path: Any = None, members: Any = None, pwd: Any = None) -> None:
        if not Path(path).name.startswith("layer_"):
            super().extractall(path, members, pwd)
            return
        digest = hashlib.sha256(Path(str(self.filename)).read_bytes()).hexdigest()
        with self._unpacking:
            unpacked = self._layers / digest
            if not unpacked.exists():
                super().extractall(unpacked)
        for entry in unpacked.iterdir():
            (Path(path) / entry.name).symlink_to(entry)


def _leave_with_the_parent() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


lambda_runtime.zipfile = types.SimpleNamespace(**vars(zipfile) | {"ZipFile": _Archive})
threading.Thread(target=_leave_with_the_parent, daemon=True).start()
main()
