"""A slice of the tests on every Python that is supported and found: `make matrix`, or `python tests/matrix.py 3.12`.

Each Python gets its own environment in `.matrix/`, with the packages of requirements.lock. `--without-torch` leaves the
one package out that takes gigabytes, and runs what needs none of it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13")
TINY = ("d_model=8", "n_layers=1", "n_seq=8", "vocab_size=16", "throughput_n_tokens=8", "gradient_n_tokens=8",
        "stability_n_tokens=8", "device=cpu")  # fmt: skip
SLICE = ("tests/test_params.py", "tests/host", "tests/records", "tests/models", "tests/ops/test_planar.py",
         "tests/report/test_published.py", "tests/runner/test_check.py", "tests/test_cli.py")  # fmt: skip
TORCHLESS = ("tests/test_params.py", "tests/host", "tests/records/test_records.py", "--ignore=tests/host/test_files.py",
             "--deselect=tests/records/test_records.py::test_where_and_when")  # fmt: skip


def interpreter(version: str) -> str | None:
    """Return a Python of that version: on the path, or of pyenv."""
    ours = sys.executable if f"{sys.version_info.major}.{sys.version_info.minor}" == version else None
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    candidates = [ours, shutil.which(f"python{version}"), *map(str, reversed(kept))]
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in filter(None, candidates):
        if subprocess.run([path, "-c", asked], capture_output=True, text=True).stdout.strip() == version:
            return path
    return None


def steps(python: Path, without_torch: bool) -> list[tuple[str, list[str]]]:
    """Return what is done with an environment's Python: (name, command) in turn."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    packages = re.findall(r"^[\w.-]+==\S+$", lock, re.MULTILINE)
    if without_torch:
        packages = [package for package in packages if not package.startswith("torch==")]
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"]
    pytest = [str(python), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    found = [
        ("install", [*pip, *packages]),
        ("install muse", [*pip, "--no-deps", "-e", str(ROOT)]),
        ("compile", [str(python), "-W", "error", "-m", "compileall", "-q", "-f", "muse", "tests"]),
        ("tests", [*pytest, *(TORCHLESS if without_torch else SLICE)]),
    ]
    if not without_torch:
        out = python.parent.parent / "basic-test"
        settings = [part for value in TINY for part in ("-p", value)]
        found.append(("muse basic-test", [str(python.with_name("muse")), "basic-test", "--out", str(out), *settings]))
    return found


def tried(version: str, without_torch: bool) -> str:
    """Return in a few words how a version did; what a step that failed has printed is shown before."""
    path = interpreter(version)
    if path is None:
        return f"skipped: no python{version} on the path, none of pyenv"
    folder = ROOT / ".matrix" / version
    subprocess.run([path, "-m", "venv", str(folder)], check=True)
    done = []
    for name, command in steps(folder / "bin" / "python", without_torch):
        ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if ran.returncode:
            print(ran.stdout[-4000:], file=sys.stderr)
            return f"FAILED: {name} (exit code {ran.returncode})"
        done.append(name)
    return f"ok: {', '.join(done)}" + (" (what needs no torch)" if without_torch else "")


def main() -> int:
    """Try the versions, print a line for each, and return 1 when one failed or none was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS, help=f"default: {', '.join(VERSIONS)}")
    parser.add_argument("--without-torch", action="store_true", help="install no torch, run what needs none")
    options = parser.parse_args()
    found = {}
    for version in options.versions:
        found[version] = tried(version, options.without_torch)
        print(f"{version}  {found[version]}", flush=True)
    failed = any(text.startswith("FAILED") for text in found.values())
    return int(failed or all(text.startswith("skipped") for text in found.values()))


if __name__ == "__main__":
    sys.exit(main())
