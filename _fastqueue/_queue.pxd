# cython: language_level=3
"""The contract page of the compiled queue: layouts, C signatures, ownership, errors, threads.

Layout. A `State` is one queue. It owns pools of equal records. A record is named by its 32-bit index and never moves,
so an index is also the handle that Python sees; index 0 is "none" (but node 0 is the root of the share tree, and devices
count from 0). A pool is a range of reserved addresses, so that an index is all it takes to find a record; memory comes in
behind it from the front. Growing copies no record and never doubles.

One kind of ordered set holds the queue together, a B+ tree of `Block`s. Each slot has a key, the least estimate of what
is behind it, and a reference. Narrow trees have the key `order`, wide ones (`usage`, `order`):

| tree | of | key |
|---|---|---|
| an account's on a device, wide | the entries below it that have a candidate | usage / shares, seq of the pick |
| a user's on a device, narrow | its candidates | Job.key |
| a dedicated session's, narrow | its queued jobs | Job.key |
| a batch's, wide | its queued jobs | estimate (the first job: 0), Job.key |
| a device's calibrations, narrow | queued jobs | Job.key |
| a device's lapses, wide | sessions | the instant, the session |

A visit to memory that is in no near cache costs more than all else in an operation. So what one operation needs of a user
lies together: `Node` holds the user's entry on its first device, a block holds the keys of some ten jobs, and a start
right after its pick does not look at the job's own record.

Ownership. `State` owns all memory; `queue_free` releases it. Nothing outside holds a pointer across a call.
Errors. `except -1` functions allocate and set MemoryError, having changed nothing; all others are `noexcept` and want
arguments that the class `Queue` has checked. Only `Queue` raises ValueError.
Threads. None: one owner calls. All functions are `nogil`, and none of them blocks or reads a clock.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef enum:
    DEPTH_MAX = 32     # nodes on a path, the root included
    BLOCK_SLOTS = 15   # so that a block is whole cache lines
    LINE = 64          # bytes of a cache line
    WIDE_SIZE = 448
    NARROW_SIZE = 320
    BLOCK_LEVELS = 16  # height of a tree: more than 2**32 slots need
    FLAG_ACCOUNT = 1
    FLAG_USER = 2
    EXTRA = 0x80000000     # in the index of an entry: see Extra
    NO_ENTRY = 0xFFFFFFFF
    NO_DEVICE = 0xFFFFFFFF


cdef enum Kind:
    FREE = 0
    CALIBRATION = 1  # owner: the device
    FAIR_SHARE = 2   # owner: the user's entry
    SESSION = 3      # owner: the session
    # Not jobs, but records in the same trees; owner: the session.
    CANDIDATE = 4    # stands in the owner's queue for the session's next job
    SECOND = 5       # stands for a batch's smallest job while its first job, being longer, may not start


cdef struct Pool:
    char *base            # of the range of addresses
    size_t range_size     # bytes of addresses
    size_t held           # bytes from `base` that memory may be behind
    uint32_t record_size  # bytes
    uint32_t used         # records ever given out; index 0 counts
    uint32_t free_first   # freed records are a list through their first four bytes; 0 ends it
    uint32_t spare        # records that can be taken before the pool has to grow


cdef struct Job:          # 24 bytes
    uint64_t key          # bit 63: not the first job of its session; 50..: 100 - priority; 2..: seq; 0, 1: see KEY_
    int64_t estimate      # ns
    uint32_t owner        # see Kind
    uint8_t kind
    uint8_t hint_high     # where a fair-share job was put in: the low 24 bits of its user's root block then, which may have
    uint16_t hint_low     # gone or been taken for anything since: only to ask for memory early


cdef struct Entry:        # 16 bytes: a node that has candidates on a device
    uint32_t up           # the entry of the node's parent on the same device; the root's: NO_ENTRY
    uint32_t next         # Extra, or NO_ENTRY: the node's next entry, on another device
    uint32_t root         # Block
    uint32_t device       # NO_DEVICE: not in use


cdef struct Extra:        # 20 bytes: an entry beside the node's own; its index has the bit EXTRA
    Entry entry
    uint32_t node


cdef struct Node:         # 64 bytes, a line: an account or a user
    double settled        # times 2**-State.exponent
    double flight         # charges in flight, times 2**-State.exponent
    double shares
    double key            # (settled + flight) / shares, as in its slots
    uint32_t parent
    uint32_t runs         # in flight
    Entry entry           # the entry with the index of the node
    uint8_t depth
    uint8_t flags


cdef struct Slot:
    uint64_t order        # in an inner block, with the usage, a lower bound of the keys behind the slot
    int64_t estimate      # the least behind the slot


cdef struct Block:        # WIDE_SIZE bytes, seven lines; in a narrow tree NARROW_SIZE, five: it ends before `usage`
    int64_t least         # of the estimates
    uint64_t places       # the slots by rank, four bits each, and then the free ones
    uint8_t count
    uint8_t height        # 0: leaf
    uint32_t ref[BLOCK_SLOTS]  # leaf: Entry, Job or Session; inner: Block
    Slot slot[BLOCK_SLOTS]         # in a narrow tree a free slot has the order NO_ORDER, above all keys
    double usage[BLOCK_SLOTS + 1]  # of a free slot (the one too many counts as one): not a number


cdef struct Session:
    int64_t fit_deadline
    int64_t condition     # SECOND stands only if less time than this is left
    int64_t lapse         # the instant after which its candidates change, if lapse_stands
    uint32_t live
    uint32_t device
    uint32_t user
    uint32_t root         # Block
    uint32_t size
    uint32_t candidate    # two records of its own: CANDIDATE, SECOND
    uint32_t second
    uint32_t candidate_job
    uint32_t second_job
    uint8_t batch
    uint8_t standing
    uint8_t candidate_stands
    uint8_t second_stands
    uint8_t lapse_stands


cdef enum:
    AHEAD = 6          # children of the root whose way is fetched before they are picked
    WAY_END = 0
    WAY_ENTRY = 1
    WAY_WIDE = 2
    WAY_NARROW = 3


cdef struct Way:       # to a pick to come, as far as it has been fetched
    uint32_t index     # Entry or Block
    uint32_t at


cdef struct Device:
    Way way[AHEAD]
    int64_t next_start
    int64_t clock         # the latest instant of a pick
    int64_t inside
    int64_t next_holder
    uint32_t root_entry
    uint32_t active       # Session, or 0
    uint32_t calibrations # Block
    uint32_t lapses       # Block
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
    double run_rate       # K * g(run_start) * 2**-run_half_lives
    int64_t run_half_lives


cdef struct Before:       # what the tree above holds about an entry
    bint present
    uint64_t seq
    int64_t least


cdef struct State:
    int64_t half_life
    double k              # half-life in seconds / log(2)
    int64_t exponent
    uint64_t charge_end   # a charge that ends then or later moves the exponent
    int64_t charge_max    # of a longer charge only the last part counts
    uint32_t queued
    uint32_t picked       # the fair-share job of the latest pick while nothing has changed since, or 0
    uint32_t picked_entry # its user's entry
    # The usage of a node and of those above has changed, and their slots are yet to be moved: `settle`.
    bint pending
    uint32_t pending_node
    uint32_t pending_entry    # whose first candidate has gone, too, or NO_ENTRY
    uint32_t pending_device   # of pending_entry, or NO_DEVICE
    Before pending_before
    Pool jobs
    Pool nodes
    Pool extras
    Pool wide
    Pool narrow
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
