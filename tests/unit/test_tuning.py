"""What a tuned process does with memory."""

import subprocess
import sys

import pytest

# `hblks` of mallinfo2 (glibc 2.33 and later): blocks that go back to the system when they are freed.
SCRIPT = """
import ctypes
from sojourn.runtime.tuning import tune_process

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd u f ff o k".split()]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Info
tune_process()
bytes(8 << 20)
before = mallinfo2().hblks
held = bytes(8 << 20)
print(mallinfo2().hblks - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_large_block_goes_back_to_the_system_however_many_there_were() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
