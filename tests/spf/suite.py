"""
The test suite of RFC 7208: where it is, and how it is had.

It is other people's, so it is not in our repository. The sdist of pyspf on PyPI
has it; we take that one file, and only if it is the one we know. It is kept in
`.suites`, or where QMQ_SUITES says. `python -m tests.spf.suite` gets it and
says where it is.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CASES = 203
_SHA256 = "901f561a6e2b1c1590a40a61b1ac7601226fd7045a7aae591a4d25421358d6f9"
# pip looks at the hash before it runs anything of it.
_REQUIREMENT = "pyspf==2.0.14 --hash=sha256:57a7ef01bda090173aafb6af0106251686ed73f03db4e911fcd34c57fc347186\n"
_MEMBER = "pyspf-2.0.14/test/rfc7208-tests.yml"


class NotHad(Exception):
    """The suite is not here, and cannot be fetched; the text says why."""


def rfc7208():
    """The text of the suite, from the cache folder or PyPI; raises NotHad."""
    folder = Path(os.environ.get("QMQ_SUITES") or Path(__file__).parents[2] / ".suites")
    kept = folder / "rfc7208-tests.yml"
    if kept.exists() and _known(text := kept.read_bytes()):
        return text
    text = _fetched()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(text)
    os.replace(file.name, kept)
    return text


def _known(text):
    return hashlib.sha256(text).hexdigest() == _SHA256


def _fetched():
    said = []
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder) / "requirement.txt"
        requirement.write_text(_REQUIREMENT)
        for python in _pythons():
            try:
                done = subprocess.run(
                    [python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                     "--no-binary", "pyspf", "--require-hashes", "--dest", folder, "--requirement", str(requirement)],
                    capture_output=True, text=True, timeout=120, cwd=folder,
                )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                said.append(f"{python}: {error}")
                continue
            if done.returncode == 0:
                return _member(next(Path(folder).glob("pyspf-*.tar.gz")))
            said.append(f"{python}: {done.stderr.strip()[-200:]}")
    raise NotHad("; ".join(said) or "there is no python with pip")


def _pythons():
    """Those that may have pip: ours (a venv of ./run has none), and the ones it may have been made by."""
    names = ["python3", "python", "python3.11", "python3.12", "python3.13"]
    elsewhere = os.pathsep.join(
        folder for folder in os.environ.get("PATH", "").split(os.pathsep) if not Path(folder, "../pyvenv.cfg").exists()
    )
    found = [sys.executable, getattr(sys, "_base_executable", None)]
    found += [shutil.which(name, path=elsewhere) for name in names]
    return list(dict.fromkeys(python for python in found if python))


def _member(sdist):
    with tarfile.open(sdist) as archive:
        text = archive.extractfile(_MEMBER).read()
    if not _known(text):
        raise NotHad(f"{_MEMBER} is not the file we know")
    return text


if __name__ == "__main__":
    print(f"{len(rfc7208())} octets")
