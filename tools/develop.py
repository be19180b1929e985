"""Make a development install of this checkout in the running Python's environment.

`pip install --editable` alone would run the code, but through an import hook that type checkers, import-linter and
editors can't follow. Directory links in site-packages (`lorary/hub -> hub`, ...) are plain to all of them, and a new
file is there the moment it is written.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("hub", "adapters", "training", "examples")


def main() -> None:
    """Install with pip, then link the rooms."""
    if sys.prefix == sys.base_prefix:
        sys.exit("expected a virtual environment; make one with: python3 -m venv .venv")
    extras = sys.argv[1] if len(sys.argv) > 1 else "dev"
    # Some dependencies come as sources only (seqeval, rouge-score); without --use-pep517 an older pip runs their
    # setup.py with whatever stands in the environment, and fails.
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--use-pep517",
         "--constraint", str(ROOT / "constraints.txt"), "--editable", f"{ROOT}[{extras}]"],
        check=True,
    )  # fmt: skip
    namespace = Path(sysconfig.get_path("purelib")) / "lorary"
    namespace.mkdir(exist_ok=True)
    for room in LINKED:
        link = namespace / room
        if link.is_symlink():
            link.unlink()
        link.symlink_to(ROOT / room, target_is_directory=True)


if __name__ == "__main__":
    main()
