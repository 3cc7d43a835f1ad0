"""python -m tests.gpu (`make gpu`): builds, proves and benches the CUDA kernels, offline.

Steps run one after another inside a budget of time; each writes to gpu.log. The results are in --out:
gpu.log, summary.json and a JSON for each bench, all of them written as they come.

Where a call may take ten minutes, what is correct fits one and the benches another, with the build kept:
--only info,conformance,runtime,ops,memcheck,racecheck,synccheck, then --only compile,bench.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

BEGIN = time.monotonic()  # importing torch counts
ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/gpu"
GRACE = 8  # seconds of a step that was interrupted


@dataclass
class Step:
    """One command."""

    name: str
    command: list[str]
    limit: float  # seconds
    needs: str = "build"  # the step without which this one makes no sense
    env: dict[str, str] = field(default_factory=dict)
    missing: str = ""  # why it cannot run here


@dataclass
class Result:
    name: str
    state: str  # passed, failed, skipped, timed out
    seconds: float = 0.0
    last: str = ""  # the last line it printed, or the reason


def find_gpu() -> tuple[str, str]:
    """(name, architecture for nvcc), or a sentence and an exit."""
    try:
        import torch
    except ImportError as error:
        raise SystemExit(
            f"make gpu: no torch in {sys.executable}: {error}; choose with PYTHON="
        ) from None
    if not torch.cuda.is_available():
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a CPU build"
        raise SystemExit(f"make gpu: no GPU: torch {torch.__version__} {build} and sees none")
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        raise SystemExit(f"make gpu: compute capability {major}.{minor}, expected 8.0 or later")
    return torch.cuda.get_device_name(), "90a" if (major, minor) == (9, 0) else f"{major}{minor}"


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def cutlass_folder() -> Path | None:
    """CUTLASS's source in the package nvidia-cutlass, found without importing it."""
    spec = importlib.util.find_spec("cutlass_library")
    source = Path(spec.origin).parent / "source" if spec and spec.origin else None
    return source if source and (source / "include/cutlass/cutlass.h").is_file() else None


def steps(out: Path, arch: str, options: argparse.Namespace) -> list[Step]:
    """Every step with its command, in order."""
    python = sys.executable
    torch_folder = Path(importlib.util.find_spec("torch").origin).parent
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", f"-DTORCH_DIR={torch_folder}",
        "-DLOWBIT_CUDA=ON", "-DLOWBIT_BUILD_GPU_TESTS=ON", f"-DLOWBIT_GPU_ARCH={arch}",
    ]  # fmt: skip
    cutlass = cutlass_folder()
    configure += [f"-DLOWBIT_CUTLASS_DIR={cutlass or ''}", f"-DLOWBIT_CUTLASS_ARCH={arch}"]
    build = ["cmake", "--build", str(BUILD), "--target"]
    libraries = [*build, "lowbit", "lowbit_conformance", "--", "-k", "0"]
    emulator = [python, "-c", "from tests.emu.conftest import build; build()"]
    # At once, because single files take long. Only the library decides: the rest serves one step.
    both = f"{shlex.join(emulator)} & {shlex.join(libraries)} || {shlex.join([*build, 'lowbit'])}"
    env = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "LOWBIT_LIBRARY": str(BUILD / "liblowbit.so"),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
    }
    on_gpu = {
        **env,
        "LOWBIT_TEST_DEVICE": "cuda",
        "LOWBIT_CONFORMANCE": str(BUILD / "liblowbit_conformance.so"),
    }
    cores = os.cpu_count() or 1
    count = min(8, cores) if has("xdist") else 1
    share = {"OMP_NUM_THREADS": str(max(1, cores // count))}  # or every worker's oracle takes all cores
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    sanitizer = shutil.which("compute-sanitizer", path=path) or ""
    lacks = [m for m in ("pytest", "hypothesis", "ml_dtypes") if not has(m)]
    no_pytest = f"needs {', '.join(lacks)}" if lacks else ""

    def pytest(*words: str, workers: int = 1, timeout: int = 60) -> list[str]:
        """A hang or a crash names its test and costs a worker, where there are workers, and not the step."""
        command = [python, "-m", "pytest", "-v", "--tb=short", "--maxfail=40", "-p", "no:cacheprovider"]
        if has("xdist"):
            command += ["-n", str(workers), "--max-worker-restart=40"]
        if has("pytest_timeout"):
            command += [f"--timeout={timeout}", "--timeout-method=thread"]
        else:
            command += ["-o", f"faulthandler_timeout={min(40, timeout)}"]
        return [*command, *words]

    def bench(name: str, limit: float) -> Step:
        command = [python, "-m", "bench", name, "--device", "cuda", "--json", str(out / f"{name}.json")]
        peers = {"LOWBIT_CUTLASS": str(BUILD / "liblowbit_cutlass.so")} if cutlass else {}
        return Step(f"bench {name}", command + ["--rounds", "5"] * options.quick, limit, env=env | peers)

    def sanitize(tool: str) -> Step:
        command = [
            sanitizer or "compute-sanitizer",
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            "--report-api-errors",
            "no",
        ]
        command += ["--kernel-name", "kns=lowbit", python, "-m", "tests.gpu.sanitize"]
        extra = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {}
        return Step(
            tool, command, 90, env=on_gpu | extra, missing="" if sanitizer else "no compute-sanitizer"
        )

    runtime = "tests/gpu/test_runtime.py"
    return [
        Step("configure", configure, 60, needs=""),
        Step("build", ["sh", "-c", f"{both}; state=$?; wait; exit $state"], 300, needs="configure"),
        Step("info", [python, "-m", "lowbit", "info"], 60, env=on_gpu),
        # What is correct comes before what is fast, and single instructions before kernels made of them.
        Step(
            "conformance", pytest("tests/gpu/test_conformance.py"), 150, env=on_gpu,
            missing=no_pytest or ("" if has("pybind11") else "needs pybind11"),
        ),
        Step("runtime", pytest(runtime, "-k", "not compiled"), 120, env=on_gpu, missing=no_pytest),
        Step("ops", pytest("tests/ops", workers=count), 300, env=on_gpu | share, missing=no_pytest),
        sanitize("memcheck"),
        sanitize("racecheck"),
        sanitize("synccheck"),
        Step("compile", pytest(runtime, "-k", "compiled", timeout=90), 150, env=on_gpu, missing=no_pytest),
        Step(
            "cutlass", [*build, "lowbit_cutlass"], 150,
            missing="" if cutlass else "no nvidia-cutlass: its peers are left out of bench linear",
        ),
        bench("linear", 150),
        bench("fp_gemm", 120),
        bench("model", 120),
        bench("layer", 60),
        bench("hadamard", 60),
        bench("quantize", 60),
    ]  # fmt: skip


def execute(step: Step, log: Path, limit: float) -> Result:
    """Run it with everything it prints in the log; a step past its limit is interrupted, so that it can say
    what it has found, and ended with its children.
    """
    begin = time.monotonic()
    with log.open("ab") as sink:
        sink.write(f"\n==== {step.name}: {' '.join(step.command)}\n".encode())
        sink.flush()
        start = sink.tell()
        try:
            process = subprocess.Popen(
                step.command, cwd=ROOT, env={**os.environ, **step.env}, stdout=sink, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return Result(step.name, "failed", 0, str(error))
        try:
            code = process.wait(timeout=limit)
            state = "passed" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            state = "timed out"
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGINT)
                process.wait(timeout=GRACE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # it may hang in the driver
                process.wait(timeout=GRACE)
    lines = [s for s in log.read_bytes()[start:].decode(errors="replace").splitlines() if s.strip()]
    return Result(step.name, state, time.monotonic() - begin, lines[-1][:150] if lines else "")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument(
        "--out", type=Path, help="folder of the results (default: $OUT, else build/gpu/results)"
    )
    parser.add_argument(
        "--only",
        help="names of steps, comma-separated, `bench` for all of those; configure and build always run, "
        "cutlass before bench linear",
    )
    parser.add_argument(
        "--budget", type=float, default=550, help="seconds for everything (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds in the benches")
    parser.add_argument("--arch", help="instead of the card's own: 90a, 80, 86, 89, 120")
    parser.add_argument("--dry-run", action="store_true", help="print the commands; needs no GPU")
    options = parser.parse_args(argv)
    out = (options.out or Path(os.environ.get("OUT") or ROOT / "build/gpu/results")).resolve()
    name, arch = ("(dry run)", options.arch or "90a") if options.dry_run else find_gpu()
    chosen = steps(out, options.arch or arch, options)
    words = options.only.split(",") if options.only else [s.name for s in chosen]
    wanted = [s.name for s in chosen if s.name in words or s.name.split()[0] in words]
    if unknown := set(words) - {s.name for s in chosen} - {"bench"}:
        parser.error(
            f"--only: expected some of {', '.join(s.name for s in chosen)}; got {', '.join(sorted(unknown))}"
        )
    always = ["configure", "build"] + ["cutlass"] * ("bench linear" in wanted)
    chosen = [s for s in chosen if s.name in (*always, *wanted)]
    if options.dry_run:
        for step in chosen:
            print(f"# {step.name}, at most {step.limit:.0f} s {step.missing}")
            print(*(f"{k}={v}" for k, v in step.env.items()), *step.command)
        return 0
    out.mkdir(parents=True, exist_ok=True)
    return run_all(chosen, out, options.budget - (time.monotonic() - BEGIN), name)


def write(path: Path, content: dict) -> None:
    """The whole file or none: whoever ends this may do it at any time."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def run_all(chosen: list[Step], out: Path, budget: float, gpu: str) -> int:
    """Each step in turn; prints and writes the summary. 0 when none failed."""
    log, end, results = out / "gpu.log", time.monotonic() + budget, []
    log.unlink(missing_ok=True)
    print(f"{gpu}; results in {out}", flush=True)
    for step in chosen:
        left = end - time.monotonic()
        bad = {r.name for r in results if r.state in ("failed", "timed out")}
        if step.missing:
            result = Result(step.name, "skipped", 0, step.missing)
        elif step.needs in bad or (bad & {"configure", "build"}):
            result = Result(step.name, "skipped", 0, "the build failed")
        elif left < 10:
            result = Result(step.name, "skipped", 0, "the budget of time is spent")
        else:
            result = execute(step, log, min(step.limit, left))
        results.append(result)
        for part in out.glob("*.part"):  # of a bench that was ended while it wrote
            part.unlink()
        write(out / "summary.json", {"gpu": gpu, "steps": [vars(r) for r in results]})
        print(f"{result.name:<15} {result.state:<10} {result.seconds:6.1f} s  {result.last}", flush=True)
        if result.state in ("failed", "timed out"):
            text = log.read_text(errors="replace").splitlines()
            print("\n".join(f"    {line[:160]}" for line in text[-25:]), flush=True)
    failed = [r.name for r in results if r.state not in ("passed", "skipped")]
    skipped = [r.name for r in results if r.state == "skipped"]
    passed = sum(r.state == "passed" for r in results)
    print(f"{passed} passed; failed: {', '.join(failed) or 'none'}; skipped: {', '.join(skipped) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
