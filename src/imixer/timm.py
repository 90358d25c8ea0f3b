"""Run one of timm's own scripts with our models known: `python -m imixer.timm train.py ...`.

timm's scripts import timm alone. So they know no model of ours, and `--model imixer_t4_32` fails.
"""

import runpy
import sys
from pathlib import Path

import imixer  # noqa: F401  (registers our models with timm)


def main(arguments: list[str]) -> int:
    """Run a script as `python` would.

    Args:
        arguments: The script's path, then its arguments.

    Returns:
        The exit code: 2 if there is no such script.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: python -m imixer.timm SCRIPT.py [its arguments]\n\nRun a script of timm with imixer's models known."
        )
        return 0 if arguments else 2
    script = Path(arguments[0])
    if not script.is_file():
        print(f"imixer: there is no script {script}; give timm's train.py, validate.py or another", file=sys.stderr)
        return 2
    sys.argv = arguments
    sys.path[0] = str(script.absolute().parent)
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
