"""The clock for waiting: one that goes on while the machine is suspended."""

import sys
import time
from functools import partial

now = partial(time.clock_gettime, time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic
"""Tell the seconds since the machine started, the time of its suspension included (`clock_gettime(2)`).

`time.monotonic()` and the event loop's timers stand still in a suspended machine, while the rest of the world goes on:
other machines' limits end, and their connections to us too. So a timer only tells that its time has passed *at least*;
where it matters how much has, this clock is asked when the timer fires.
"""
