"""Running as somebody whom file permissions bind."""

import os
import tempfile


def unprivileged(action):
    """The result or error of ``action``, as text, in a process that file permissions bind, as they don't root."""
    with tempfile.TemporaryFile("w+") as result:
        if not (child := os.fork()):
            try:
                if not os.getuid():
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
