"""Seconds that `import scvi_lfm` takes beyond `import anndata`: median of pairs in fresh processes.

python tests/benchmarks/import_time.py [--repeats 9]

Exit status 1 where even the quickest takes longer than it may.
"""

import argparse
import statistics
import subprocess
import sys

CODE = "import time; import anndata; start = time.perf_counter(); import scvi_lfm; print(time.perf_counter() - start)"
MOST_SECONDS = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    seconds = [
        float(subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True).stdout)
        for _ in range(args.repeats)
    ]
    print(f"import scvi_lfm: {statistics.median(seconds):.4f} s beyond anndata (worst {max(seconds):.4f})")
    if min(seconds) > MOST_SECONDS:
        sys.exit(f"more than {MOST_SECONDS} s")


if __name__ == "__main__":
    main()
