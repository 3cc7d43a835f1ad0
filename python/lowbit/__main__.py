"""`python -m lowbit` prints what was found: torch, instruction sets, CUDA, GPU, and why anything is off."""

import sys

from lowbit.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["info"]))
