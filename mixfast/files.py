"""Files that are written whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file completely; if that fails, an old file of this name stays unchanged. The umask decides its mode.

    Raises:
        OSError: the file cannot be written.
    """
    fresh = path.with_name(path.name + ".tmp")
    try:
        fresh.write_bytes(content)
        os.replace(fresh, path)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise
