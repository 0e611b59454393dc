"""Memory that malloc keeps between batches, in processes of afinar's own only."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

BLOCK = 64 * 2**20
PROGRAM = """
import resource
from afinar.units.own_process import claim_process, keep_freed_memory
if {claims}:
    claim_process()
keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray({block})
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*, claims: bool) -> int:
    """Return the page faults of a process that uses a block of 64 MB ten times."""
    program = PROGRAM.format(claims=claims, block=BLOCK)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library has no mallopt")
def test_a_claimed_process_asks_the_kernel_once_for_a_block() -> None:
    with_claim, without = page_faults(claims=True), page_faults(claims=False)
    pages = BLOCK // resource.getpagesize()
    assert without > 9 * pages, "each of the ten blocks came from the kernel"
    assert with_claim < 2 * pages, "the first one did"
