"""Running as somebody whom file permissions bind."""

import os
import tempfile


def unprivileged(action):
    """Run ``action`` in a process that file permissions bind, which they don't for root; give back its result."""
    if os.getuid():
        return action()
    with tempfile.TemporaryFile("w+") as result:
        if not (child := os.fork()):
            try:
                os.setuid(65534)
                result.write(str(action()))
            except BaseException as error:
                result.write(f"{type(error).__name__}: {error}")
            finally:
                result.flush()
                os._exit(0)
        os.waitpid(child, 0)
        result.seek(0)
        return result.read()
