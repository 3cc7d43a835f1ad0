"""The short list for compute-sanitizer: each op once on small samples, results compared."""

import sys

import torch

from tests.oracle import compare

from .calls import calls, run


def main() -> int:
    done = 0
    for name, args, want in calls():
        for got, expected in zip(run(name, args), want if isinstance(want, tuple) else (want,), strict=True):
            compare.exact(got, expected, allow_empty=True)
        done += 1
    torch.cuda.synchronize()
    print(f"{done} calls checked")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
