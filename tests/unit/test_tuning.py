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


# A cycle that outlived a look at the young objects, and of which nobody is left; then more young objects come.
OLD_CYCLE = """
import gc, sys, time, weakref
from sojourn.runtime import tuning

tuning.OLD_GARBAGE_EVERY_S, looks = float(sys.argv[1]), int(sys.argv[2])
tuning.tune_process()

class Node:
    pass

node = Node()
node.itself = node
gone = weakref.ref(node)
gc.collect(0)
del node
end = time.monotonic() + 60
while looks and gone() is not None and time.monotonic() < end:
    held = [[] for _ in range(2 * tuning.YOUNG_OBJECTS)]
    looks -= tuning.OLD_GARBAGE_EVERY_S > 1
print(gone() is None)
"""


@pytest.mark.parametrize(
    ("every_s", "looks", "collected"), [("0.001", "1", "True"), ("3600", "500", "False")]
)
def test_old_garbage_has_its_turn_by_the_clock(every_s: str, looks: str, collected: str) -> None:
    command = [sys.executable, "-c", OLD_CYCLE, every_s, looks]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == collected
