# The monotonic clock, and the pace at which a loop over records looks at it.
from libc.stdint cimport int64_t

cdef extern from "time.h" nogil:
    ctypedef long time_t
    cdef struct timespec:
        time_t tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    int CLOCK_MONOTONIC


cdef inline int64_t nanoseconds() noexcept nogil:
    """What `time.monotonic_ns` says."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef enum:
    SHORT_LAP = 200_000                  # nanoseconds
    LONG_LAP = 1_000_000
    MOST_STEPS = 16


cdef struct Pace:
    # A lap is so many records that it takes between SHORT_LAP and LONG_LAP, but MOST_STEPS at most:
    # the clock then costs little, and after a deadline no more than MOST_STEPS records are begun,
    # even if they take far longer than all before them.
    int64_t deadline                     # 0: there is none
    int64_t lap_began
    Py_ssize_t lap                       # records
    Py_ssize_t left                      # of this lap
    bint late                            # the deadline was seen to have passed


cdef inline void begin_pace(Pace *pace, int64_t deadline) noexcept nogil:
    pace.deadline = deadline
    pace.lap = pace.left = 1
    pace.late = False
    pace.lap_began = nanoseconds() if deadline else 0


cdef inline bint next_lap(Pace *pace) noexcept nogil:
    """At the end of a lap: whether the deadline has passed; else the next lap begins."""
    cdef int64_t now = nanoseconds()
    cdef int64_t taken = now - pace.lap_began
    if now >= pace.deadline:
        pace.late = True
        return True
    if taken < SHORT_LAP and pace.lap < MOST_STEPS:
        pace.lap *= 2
    elif taken > LONG_LAP and pace.lap > 1:
        pace.lap //= 2
    pace.left = pace.lap
    pace.lap_began = now
    return False


cdef inline bint is_late(Pace *pace) noexcept nogil:
    """Before a record: whether the deadline has passed, as the last look at the clock says."""
    if pace.deadline == 0:
        return False
    pace.left -= 1
    return pace.left <= 0 and next_lap(pace)
