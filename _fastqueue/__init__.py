"""The compiled queue of the scheduler: share tree, fair share, sessions and windows (semantics 3, 5.3, 6 and 8).

`Queue` is the compiled one; `_fastqueue.reference.Queue` is the same surface in plain Python, the executable
specification that the tests hold the compiled one to.
"""

from ._queue import BATCH_FITS_NOTHING, BATCH_MAY_NOT_START, HELD, NEVER, NOTHING, ROOT, Queue

__all__ = ["BATCH_FITS_NOTHING", "BATCH_MAY_NOT_START", "HELD", "NEVER", "NOTHING", "ROOT", "Queue"]
