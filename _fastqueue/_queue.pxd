# cython: language_level=3
"""The contract page of the compiled queue: layouts, C signatures, ownership, errors, threads.

Layout. A `State` is one queue. It owns seven pools of equal records. A record is named by its 32-bit index and never
moves, so an index is also the handle that Python sees; index 0 is "none" (but node 0 is the root of the share tree,
and devices count from 0). Pools grow by whole chunks: growing copies no record and never doubles.

Two kinds of ordered set hold the queue together:
- *trees of jobs* (AVL, links inside `Job`): a user's candidates on one device, a session's queued jobs, a device's
  calibrations, a device's lapse times. `Job.least` is the least estimate of the subtree.
- *trees of children* (B+ trees of `Block`s): the children with a candidate of one account on one device, by
  (usage / shares, seq of the child's pick), with the least estimate of what is below each slot.

Ownership. `State` owns all memory; `queue_free` releases it. Nothing outside holds a pointer across a call.
Errors. `except -1` functions allocate and set MemoryError, having changed nothing; all others are `noexcept` and want
arguments that the class `Queue` has checked. Only `Queue` raises ValueError.
Threads. None: one owner calls. All functions are `nogil`, and none of them blocks or reads a clock.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef enum:
    DEPTH_MAX = 32     # nodes on a path, the root included
    BLOCK_SLOTS = 16   # children in a block
    BLOCK_LEVELS = 16  # height of a tree of children: more than 2**32 children need
    FLAG_ACCOUNT = 1
    FLAG_USER = 2


cdef enum Kind:
    FREE = 0
    CALIBRATION = 1  # owner: the device
    FAIR_SHARE = 2   # owner: the user's entry
    SESSION = 3      # owner: the session
    # Not jobs, but records in the same trees; owner: the session.
    CANDIDATE = 4    # stands in the owner's queue for the session's next job
    SECOND = 5       # stands for a batch's smallest job while its first job, being longer, may not start
    LAPSE = 6        # `estimate` is the instant after which a batch's candidates no longer fit


cdef struct Pool:
    char **chunks
    uint32_t chunk_count
    uint32_t chunk_max    # length of `chunks`
    uint32_t shift        # 2**shift records a chunk
    uint32_t record_size  # bytes
    uint32_t used         # records ever given out; index 0 counts
    uint32_t free_first   # freed records are a list through their first four bytes; 0 ends it
    uint32_t free_count


cdef struct Job:          # 48 bytes
    uint64_t key          # bit 63: not the first job of its session; bits 48..: 100 - priority; below: seq
    int64_t estimate      # ns
    int64_t least         # the least estimate of the subtree
    uint32_t left
    uint32_t right
    uint32_t parent
    uint32_t owner        # see Kind
    uint8_t height
    uint8_t kind


cdef struct Node:         # 32 bytes: an account or a user
    double settled        # times 2**-State.exponent
    double shares
    uint32_t parent
    uint32_t flight       # Flight, or 0: nothing in flight
    uint32_t entries      # Entry: the devices where it has candidates
    uint8_t depth
    uint8_t flags


cdef struct Flight:       # a node's charges in flight
    double amount         # times 2**-State.exponent
    uint32_t runs


cdef struct Entry:        # 20 bytes: a node that has candidates on a device
    uint32_t node
    uint32_t up           # the entry of the node's parent on the same device; 0: this is the root's
    uint32_t next         # the node's entry on another device
    uint32_t root         # account: Block; user: Job
    uint32_t first        # user: its first candidate (never a SECOND). root's entry: the device


cdef struct Block:        # 456 bytes
    uint64_t usage[BLOCK_SLOTS]    # usage / shares as an ordered integer; in an inner block a lower bound of the child
    uint64_t seq[BLOCK_SLOTS]      # seq of the pick
    int64_t estimate[BLOCK_SLOTS]  # the least estimate below
    uint32_t ref[BLOCK_SLOTS]      # leaf: Entry; inner: Block
    uint16_t count
    uint16_t height                # 0: leaf


cdef struct Session:
    int64_t fit_deadline
    int64_t condition     # SECOND stands only if less time than this is left
    uint32_t live
    uint32_t device
    uint32_t user
    uint32_t root         # Job
    uint32_t size
    uint32_t candidate    # three records of its own: CANDIDATE, SECOND, LAPSE
    uint32_t second
    uint32_t lapse
    uint32_t candidate_job
    uint32_t second_job
    uint8_t batch
    uint8_t standing
    uint8_t candidate_stands
    uint8_t second_stands
    uint8_t lapse_stands


cdef struct Device:
    int64_t next_start
    int64_t clock         # the latest instant of a pick
    int64_t inside
    int64_t next_holder
    uint32_t root_entry
    uint32_t active       # Session, or 0
    uint32_t calibrations # Job
    uint32_t lapses       # Job
    uint32_t calibration_count
    uint32_t session_count
    uint32_t fair_share_count
    uint32_t disorder     # candidates that may come before one with a smaller seq: a priority, or a batch
    uint8_t outside_dedicated
    uint8_t busy
    uint8_t run_calibration
    uint32_t run_user
    int64_t run_start
    int64_t run_estimate
    double run_charge     # times 2**-State.exponent


cdef struct State:
    int64_t half_life
    double k              # half-life in seconds / log(2)
    int64_t exponent
    uint32_t queued
    Pool jobs
    Pool nodes
    Pool flights
    Pool entries
    Pool blocks
    Pool sessions
    Pool devices


# Set up an empty queue with a root. -1: no memory; `queue_free` is still to be called.
cdef int queue_init(State *q, int64_t half_life) except -1 nogil
cdef void queue_free(State *q) noexcept nogil

# The law of dispatch (3): a job's handle or one of the negative answers. The device is free.
cdef int64_t queue_pick(State *q, uint32_t device, int64_t now) except? -9 nogil
# Queue a fair-share job of a user: its handle.
cdef int64_t queue_push(
    State *q, uint32_t device, uint32_t user, uint64_t seq, int priority, int64_t estimate
) except -1 nogil
cdef int queue_remove(State *q, uint32_t job) except -1 nogil
cdef int queue_start(State *q, uint32_t job, int64_t now) except -1 nogil
cdef int queue_finish(State *q, uint32_t device, int64_t now) except -1 nogil


@cython.final
cdef class Queue:
    cdef State state
    cdef Node *_node(self, int64_t node) except NULL
    cdef Node *_user(self, int64_t user) except NULL
    cdef Device *_device(self, int64_t device) except NULL
    cdef Session *_session(self, int64_t session) except NULL
    cdef Job *_job(self, int64_t job) except NULL
