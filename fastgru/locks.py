"""The locks of the library, each held for moments, in the order in which they may nest.

A child of fork gets every lock as it was at that moment, and the thread that held one is not there
to give it back. So who forks takes them all first: the child finds them free, and no weights that
are half written.
"""

from __future__ import annotations

import os
import threading

building = threading.RLock()  # two first calls at once must not make two sets of weights
writing = threading.RLock()  # weights that belong together are written, and read, as one
counting = threading.Lock()  # names of layers, draws of dropout masks

if hasattr(os, "register_at_fork"):
    for _lock in (counting, writing, building):  # the one registered last is taken first
        os.register_at_fork(
            before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
        )
