"""A Slurm cluster for the tests of this folder, or the reason why there is none.

ALIGNLAB_TEST_INSTALL=1 lets the tests install what is missing; CI does so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import slurm_bench
from filelock import FileLock


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_bench.Bench]:
    """Two nodes with accounting and preemption; each process of pytest-xdist has its own."""
    install = os.environ.get("ALIGNLAB_TEST_INSTALL") == "1"
    try:
        with FileLock("/tmp/alignlab-slurm-packages.lock", timeout=600):
            slurm_bench.require(install)
    except slurm_bench.Unavailable as missing:
        pytest.skip(f"no Slurm: {missing}")
    with slurm_bench.bench(tmp_path_factory.mktemp("slurm") / "bench") as made:
        yield made
