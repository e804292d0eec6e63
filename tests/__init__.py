"""Tests. Where Python may keep no bytecode beside the sources, a test run keeps it in a folder of its own.

Otherwise each of its processes compiles the sources of all that it imports, which takes seconds.
"""

import atexit
import os
import shutil
import sys
import tempfile

if sys.dont_write_bytecode and not sys.pycache_prefix:
    sys.dont_write_bytecode, sys.pycache_prefix = False, tempfile.mkdtemp(prefix="jaxpt-bytecode-")
    atexit.register(shutil.rmtree, sys.pycache_prefix, ignore_errors=True)
    # Workers, and programs that tests start, read these.
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
