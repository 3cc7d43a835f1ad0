"""The short list for compute-sanitizer: each op once on small samples, results compared."""

import sys

import torch

from tests.ops.device import place
from tests.oracle import compare

from .calls import run, samples


def main() -> int:
    done, failed = 0, []
    for i, (name, args, want) in enumerate(samples()):
        print(f"{i} {name}", flush=True)  # before the call: a hang is the last one named
        try:
            expected = want if isinstance(want, tuple) else (want,)
            for got, e in zip(run(name, place(name, args)), expected, strict=True):
                compare.exact(got, e, allow_empty=True)
            torch.cuda.synchronize()
            done += 1
        except Exception as error:
            failed.append(f"{i} {name}")
            print(f"  {type(error).__name__}: {error}", flush=True)
    print(f"{done} calls checked; failed: {', '.join(failed) or 'none'}")
    return 0 if done and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
