"""`python -m poise`: the command line, also for torchrun, where the first process alone speaks."""

import os
import sys

from poise.cli import main

if __name__ == "__main__":
    if int(os.environ.get("RANK", "0")) > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    main()
