"""What mgqe-reader adds to a service that has NumPy: the bytes of its distribution, and the time of its import.

python -m benchmarks.speed.reader

The wheel of the reader is built and unpacked. Counted are the bytes of all its files, and seconds of the processor,
which other work disturbs little: of Python alone, with NumPy, and with the reader that has opened a table and looked
a row up. The least of several runs of each counts.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from benchmarks._common import ROOT, SPEED, Measurement, save

TABLE = ROOT / "tests" / "golden" / "compact-small.safetensors"
STEPS = {
    "python": "pass",
    "numpy": "import numpy",
    "mgqe_reader": "import mgqe_reader",
    "numpy, mgqe_reader, a look-up": f"import numpy, mgqe_reader; mgqe_reader.load({str(TABLE)!r}).lookup([4, 3])",
}


def seconds(code: str, site: Path) -> float:
    """Of the processor, that a new process takes to run Python code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(site)}, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=SPEED / "reader.json", help="where the JSON goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", name, str(ROOT / "reader")]
        subprocess.run(command, check=True)
        (wheel,) = Path(name).glob("*.whl")
        site = Path(name) / "site"
        zipfile.ZipFile(wheel).extractall(site)
        nbytes = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
        took = {step: sorted(seconds(code, site) for _ in range(options.runs)) for step, code in STEPS.items()}
    results = [
        Measurement({"bytes": nbytes}, step, each[len(each) // 2], each[0], each[0] / took["numpy"][0])
        for step, each in took.items()
    ]
    save(options.out, "reader", options, results)
    least = [each[0] for each in took.values()]
    print(f"{nbytes:,} bytes; import {least[2] - least[0]:.3f} s; open and look up {least[3] - least[1]:.3f} s")


if __name__ == "__main__":
    main()
