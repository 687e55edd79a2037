# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: auto_pickle=False, autotestdict=False, embedsignature=False, binding=False
"""The compiled queue. Its surface is `_queue.pyi`, its layout and contract `_queue.pxd`, its meaning `reference.py`.

The law of this file; every function may rely on it and leaves it behind true:

1. A user has an entry on a device exactly while its tree of candidates there is not empty; an account exactly while
   one of its children has an entry there. The root's entry of a device stays.
2. The tree of candidates of a user holds its queued fair-share jobs and, for each standing session that is not active,
   a CANDIDATE for the job of it that would run, if any. A batch whose first job is queued has a SECOND, too, if its
   smallest other job is smaller: it counts only where less time is left than the first job takes. So a user has a
   candidate that takes no longer than `left` exactly if the least estimate of its tree is no more than `left`.
3. The tree of children of an account holds one slot an entry below it, ordered by (usage / shares, seq of the child's
   pick without restrictions), and each slot the least estimate of the child's candidates. The slots of a node have the
   usage `Node.key`. Candidates change only between `begin` and `lift`, usage only after `usage_begin`, and `settle`
   moves the slots before anything else is asked or changed.
4. As of `Device.clock`, CANDIDATEs of batches fit. `expire` makes that true for a later instant, through the tree of
   lapses: the first instants after which a batch's candidates change.
5. Nothing is in flight, exactly 0, for a node without runs.
"""

from cpython.exc cimport PyErr_NoMemory
from libc.math cimport INFINITY, NAN, exp2, expm1, isfinite, ldexp, log
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport abort, free, malloc, qsort
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    #include <math.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <sys/mman.h>
    #include <sys/resource.h>
    #define CADENZA_PAGE ((size_t)2 << 20)
    #define CADENZA_RANGE ((size_t)8 << 30)
    /* Addresses for a pool, aligned to huge pages, without memory behind them: up to 8 GB, or a part of what the process
       may have. NULL: there are none. */
    static char *cadenza_range(size_t *size) {
        struct rlimit limit;
        *size = CADENZA_RANGE;
        if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur / 32 < *size)
            *size = limit.rlim_cur / 32 / CADENZA_PAGE * CADENZA_PAGE;
        char *range = (char *)mmap(NULL, *size + CADENZA_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
        if (range == (char *)MAP_FAILED) return NULL;
        size_t before = -(uintptr_t)range % CADENZA_PAGE;
        if (before) munmap(range, before);
        munmap(range + before + *size, CADENZA_PAGE - before);
        return range + before;
    }
    /* Let memory be used behind `size` more bytes: zeros, and only touched pages take any. Where the system can, pages
       are huge, so that a visit to any record needs no walk through page tables, but for the first of a pool: a small
       queue stays small. */
    static int cadenza_extend(char *range, size_t held, size_t size) {
        if (mprotect(range + held, size, PROT_READ | PROT_WRITE)) return 0;
    #if defined(MADV_HUGEPAGE)
        if (held) (void)madvise(range + held, size, MADV_HUGEPAGE);
    #endif
        return 1;
    }
    static void cadenza_return(char *range, size_t size) { munmap(range, size); }
    #if defined(__GNUC__) || defined(__clang__)
    #define cadenza_prefetch(line) __builtin_prefetch(line)
    #else
    #define cadenza_prefetch(line) ((void)(line))
    #endif
    /* How many of 16 keys are smaller: all are looked at, and no branch depends on where the key falls. */
    #if defined(__GNUC__) || defined(__clang__)
    typedef double cadenza_keys __attribute__((vector_size(16), may_alias));
    typedef int64_t cadenza_counts __attribute__((vector_size(16)));
    static inline int cadenza_smaller(const double *keys, double key) {
        cadenza_keys all = {key, key};
        cadenza_counts smaller = {0, 0};
    #if defined(__GNUC__)
    #pragma GCC unroll 8
    #endif
        for (int i = 0; i < 8; i++) smaller -= ((const cadenza_keys *)keys)[i] < all;
        return (int)(smaller[0] + smaller[1]);
    }
    #else
    static inline int cadenza_smaller(const double *keys, double key) {
        int smaller = 0;
        for (int i = 0; i < 16; i++) smaller += keys[i] < key;
        return smaller;
    }
    #endif
    /* The same of the orders in a narrow block's 15 slots. What a cancel takes longest for is memory; without a branch
       that depends on it the processor goes on to what follows meanwhile. */
    static inline int cadenza_before(const void *slots, uint64_t order) {
        const uint64_t *orders = (const uint64_t *)slots;
        int before = 0;
    #if defined(__GNUC__)
    #pragma GCC unroll 15
    #endif
        for (int i = 0; i < 15; i++) before += orders[2 * i] < order;
        return before;
    }
    /* a / b for 0 <= a < b, correctly rounded (as Python divides its integers), also beyond 2**53. */
    static double cadenza_fraction(int64_t a, int64_t b) {
        const int64_t exact = (int64_t)1 << 53;
        if (b <= exact || a == 0) return (double)a / (double)b;
        unsigned __int128 dividend = (unsigned __int128)a;
        int shift = 0;
        /* a quotient of 55 bits or more; its last bit also stands for the rest */
        while (dividend / (uint64_t)b < ((uint64_t)1 << 54)) { dividend <<= 1; shift++; }
        uint64_t quotient = (uint64_t)(dividend / (uint64_t)b);
        int sticky = (dividend % (uint64_t)b) != 0;
        /* quotient is in [2**54, 2**55): keep 53 bits, round half to even */
        uint64_t kept = quotient >> 2, rest = ((quotient & 3) << 1) | (uint64_t)sticky;
        if (rest > 4 || (rest == 4 && (kept & 1))) kept++;
        return ldexp((double)kept, 2 - shift);
    }
    """
    double cadenza_fraction(int64_t a, int64_t b) noexcept nogil
    int cadenza_smaller(const double *keys, double key) noexcept nogil
    int cadenza_before(const void *slots, uint64_t order) noexcept nogil
    void cadenza_prefetch(const char *line) noexcept nogil
    char *cadenza_range(size_t *size) noexcept nogil
    bint cadenza_extend(char *range, size_t held, size_t size) noexcept nogil
    void cadenza_return(char *range, size_t size) noexcept nogil

cdef enum:
    FIRST_BYTES = 2 << 20     # of a pool: one huge page
    MORE_BYTES = 16 << 20
    BLOCKS_KEPT = 40          # free blocks that a change of one device may need
    MERGE_BELOW = 5           # a block with fewer slots looks for a neighbour to merge with
    MERGED_MAX = 12           # slots in a merged block: room is left for the next ones
    KEY_SESSION = 1           # bits of a key: the record stands for a session (CANDIDATE, SECOND)
    KEY_SECOND = 2
    EXPONENTS_MAX = 700       # see reference.py
    EXPONENTS_KEPT = 640
    CHARGE_HALF_LIVES_MAX = 900

cdef int64_t FOREVER = 0x7FFFFFFFFFFFFFFF
cdef uint64_t NOT_FIRST = <uint64_t>1 << 63
cdef uint64_t SEQ_MAX = (<uint64_t>1 << 48) - 1
cdef uint64_t NO_ORDER = ~<uint64_t>0
cdef uint64_t SIGN = <uint64_t>1 << 63
cdef uint64_t PLACES = 0xEDCBA9876543210

NEVER = 2**63 - 1
ROOT = 0
NOTHING = -1
HELD = -2
BATCH_FITS_NOTHING = -3
BATCH_MAY_NOT_START = -4


# --- pools ------------------------------------------------------------------------------------------------------------

cdef void pool_init(Pool *p, uint32_t record_size, uint32_t used) noexcept nogil:
    memset(p, 0, sizeof(Pool))
    p.record_size = record_size
    p.used = used


cdef void pool_free(Pool *p) noexcept nogil:
    if p.base != NULL:
        cadenza_return(p.base, p.range_size)
    p.base = NULL


cdef bint pool_grow(Pool *p) noexcept nogil:
    """Whether there was memory for more records."""
    cdef size_t more = MORE_BYTES if p.held else FIRST_BYTES
    if p.base == NULL:
        p.base = cadenza_range(&p.range_size)
    if more > p.range_size - p.held:
        more = p.range_size - p.held
    if p.base == NULL or more == 0 or not cadenza_extend(p.base, p.held, more):
        return False
    p.spare += <uint32_t>((p.held + more) // p.record_size - p.held // p.record_size)
    if p.held == 0:
        p.spare -= p.used  # index 0
    p.held += more
    return True


cdef inline char *pool_at(Pool *p, uint32_t i) noexcept nogil:
    return p.base + <size_t>i * p.record_size


cdef int pool_reserve(Pool *p, uint64_t count) except -1 nogil:
    """Make sure that `count` records can be taken without a failure."""
    while p.spare < count:
        if not pool_grow(p):
            with gil:
                PyErr_NoMemory()
    return 0


cdef int pool_copy(Pool *to, Pool *p) except -1 nogil:
    """Fill an empty pool with the records of another; their indices stay."""
    while to.held < p.held:
        if not pool_grow(to):
            with gil:
                PyErr_NoMemory()
    if p.held:
        memcpy(to.base, p.base, <size_t>p.used * p.record_size)
    to.used, to.free_first, to.spare = p.used, p.free_first, p.spare
    return 0


cdef inline uint32_t pool_take_raw(Pool *p) noexcept nogil:
    """A record that holds anything. Reserved before: it does not fail."""
    cdef uint32_t i = p.free_first
    if p.spare == 0 and not pool_grow(p):
        abort()  # beyond what `reserve` foresees and out of memory: nothing consistent is left to go on with
    p.spare -= 1
    if i:
        p.free_first = (<uint32_t *>pool_at(p, i))[0]
    else:
        i = p.used
        p.used += 1
    return i


cdef inline uint32_t pool_take(Pool *p) noexcept nogil:
    """A zeroed record."""
    cdef uint32_t i = pool_take_raw(p)
    memset(pool_at(p, i), 0, p.record_size)
    return i


cdef inline void pool_give(Pool *p, uint32_t i) noexcept nogil:
    (<uint32_t *>pool_at(p, i))[0] = p.free_first
    p.free_first = i
    p.spare += 1


cdef uint64_t pool_bytes(Pool *p) noexcept nogil:
    """What has been touched; the rest is but addresses."""
    return <uint64_t>p.used * p.record_size


cdef inline Job *job_at(State *q, uint32_t i) noexcept nogil:
    return <Job *>q.jobs.base + i


cdef inline Node *node_at(State *q, uint32_t i) noexcept nogil:
    return <Node *>q.nodes.base + i


cdef inline Extra *extra_at(State *q, uint32_t i) noexcept nogil:
    return <Extra *>q.extras.base + i


cdef Entry *entry_beside(State *q, uint32_t i) noexcept nogil:
    return &extra_at(q, i & ~<uint32_t>EXTRA).entry


cdef inline Entry *entry_at(State *q, uint32_t i) noexcept nogil:
    if i & <uint32_t>EXTRA:
        return entry_beside(q, i)
    return &node_at(q, i).entry


cdef inline uint32_t entry_node(State *q, uint32_t i) noexcept nogil:
    if i & <uint32_t>EXTRA:
        return extra_at(q, i & ~<uint32_t>EXTRA).node
    return i


cdef inline Block *block_at(State *q, bint wide, uint32_t i) noexcept nogil:
    if wide:
        return <Block *>(q.wide.base + <size_t>i * WIDE_SIZE)
    return <Block *>(q.narrow.base + <size_t>i * NARROW_SIZE)


cdef inline void fetch(const void *record, int size) noexcept nogil:
    """Ask for all lines of a record at once, where they would otherwise be waited for one after the other."""
    cdef int at = 0
    while at < size:
        cadenza_prefetch(<const char *>record + at)
        at += LINE


cdef inline void fetch_wide(Block *b) noexcept nogil:
    """Ask for what a search looks at."""
    cadenza_prefetch(<const char *>b)
    cadenza_prefetch(<const char *>b.usage)
    cadenza_prefetch(<const char *>b.usage + LINE)


cdef inline Session *session_at(State *q, uint32_t i) noexcept nogil:
    return <Session *>q.sessions.base + i


cdef inline Device *device_at(State *q, uint32_t i) noexcept nogil:
    return <Device *>q.devices.base + i


# --- trees ------------------------------------------------------------------------------------------------------------
# Slots never move within a block: `places` says where the slot of each rank is, in four bits each, then the free ones.
# In an inner block the key of rank i > 0 is no more than any key behind it and more than all keys behind rank i - 1; the
# key of rank 0 is below all. Keys are unique. The usage of a free slot is not a number: no search counts it.

cdef struct Path:
    Block *block[BLOCK_LEVELS]
    uint32_t index[BLOCK_LEVELS]
    int rank[BLOCK_LEVELS]
    int last                 # the leaf's level, counted from the root


cdef inline int slot_at(Block *b, int rank) noexcept nogil:
    return <int>(b.places >> (4 * rank)) & 15


cdef inline uint32_t ref_at(Block *b, int rank) noexcept nogil:
    return b.ref[slot_at(b, rank)]


cdef inline uint64_t order_at(Block *b, int rank) noexcept nogil:
    return b.slot[slot_at(b, rank)].order


cdef inline int64_t estimate_at(Block *b, int rank) noexcept nogil:
    return b.slot[slot_at(b, rank)].estimate


cdef inline double usage_at(Block *b, int rank) noexcept nogil:
    return b.usage[slot_at(b, rank)]


cdef inline uint32_t block_take(State *q, bint wide) noexcept nogil:
    cdef uint32_t index = pool_take(&q.wide if wide else &q.narrow)
    cdef Block *b = block_at(q, wide, index)
    cdef int i
    b.places = PLACES
    b.least = FOREVER
    if wide:
        for i in range(BLOCK_SLOTS + 1):
            b.usage[i] = NAN
    else:
        for i in range(BLOCK_SLOTS):
            b.slot[i].order = NO_ORDER
    return index


cdef inline int block_find(Block *b, bint wide, double usage, uint64_t order) noexcept nogil:
    """The first rank whose key is not smaller."""
    cdef int i
    if wide:
        i = cadenza_smaller(b.usage, usage)
        while i < b.count and usage_at(b, i) == usage and order_at(b, i) < order:
            i += 1
        return i
    return cadenza_before(b.slot, order)


cdef inline void block_renew(Block *b) noexcept nogil:
    cdef int64_t least = FOREVER
    cdef int64_t estimate
    cdef int i
    for i in range(b.count):
        estimate = estimate_at(b, i)
        least = estimate if estimate < least else least
    b.least = least


cdef inline void block_estimate(Block *b, int i, int64_t estimate) noexcept nogil:
    """Change the estimate of rank i."""
    cdef int slot = slot_at(b, i)
    cdef int64_t old = b.slot[slot].estimate
    b.slot[slot].estimate = estimate
    if estimate <= b.least:
        b.least = estimate
    elif old == b.least:
        block_renew(b)


cdef inline void block_open(
    Block *b, bint wide, int i, double usage, uint64_t order, int64_t estimate, uint32_t ref
) noexcept nogil:
    """Put a slot in at rank i."""
    cdef int slot = slot_at(b, b.count)
    cdef uint64_t below = (<uint64_t>1 << (4 * i)) - 1
    cdef uint64_t above = ~<uint64_t>0 << (4 * b.count) << 4
    b.places = (
        (b.places & below) | (<uint64_t>slot << (4 * i)) | ((b.places & ~above & ~below) << 4 & ~above)
        | (b.places & above)
    )
    b.count += 1
    b.slot[slot].order = order
    b.slot[slot].estimate = estimate
    b.ref[slot] = ref
    if wide:
        b.usage[slot] = usage
    if estimate < b.least:
        b.least = estimate


cdef inline void block_close(Block *b, bint wide, int i) noexcept nogil:
    """Take the slot at rank i out; it is the next to be given away."""
    cdef int slot = slot_at(b, i)
    cdef int last = b.count - 1
    cdef uint64_t below = (<uint64_t>1 << (4 * i)) - 1
    cdef uint64_t above = ~<uint64_t>0 << (4 * last) << 4
    b.places = (
        (b.places & below) | ((b.places & ~above) >> 4 & ~below) | (<uint64_t>slot << (4 * last)) | (b.places & above)
    )
    b.count = last
    if wide:
        b.usage[slot] = NAN
    else:
        b.slot[slot].order = NO_ORDER
    if b.slot[slot].estimate == b.least:
        block_renew(b)
    if i == 0 and b.height and last:
        block_lowest(b, wide)


cdef inline void block_lowest(Block *b, bint wide) noexcept nogil:
    """Let the key of an inner block's rank 0 be below all."""
    cdef int slot = slot_at(b, 0)
    b.slot[slot].order = 0
    if wide:
        b.usage[slot] = -INFINITY


cdef void block_append(Block *to, bint wide, Block *source, int first) noexcept nogil:
    """Move the slots from rank `first` on to the end of another block."""
    cdef int i, slot, at
    for i in range(first, source.count):
        slot = slot_at(source, i)
        at = slot_at(to, to.count + i - first)
        to.slot[at] = source.slot[slot]
        to.ref[at] = source.ref[slot]
        if wide:
            to.usage[at] = source.usage[slot]
            source.usage[slot] = NAN
        else:
            source.slot[slot].order = NO_ORDER
        if to.slot[at].estimate < to.least:
            to.least = to.slot[at].estimate
    to.count += source.count - first
    source.count = first


cdef inline void tree_seek(
    State *q, bint wide, uint32_t root, double usage, uint64_t order, Path *path
) noexcept nogil:
    """The path to the leaf where the key is or belongs, and its rank there."""
    cdef int level = 0
    cdef int i
    cdef Block *b = block_at(q, wide, root)
    while b.height:
        i = block_find(b, wide, usage, order + 1) - 1
        path.block[level] = b
        path.index[level] = root
        path.rank[level] = i
        level += 1
        root = ref_at(b, i)
        b = block_at(q, wide, root)
    path.block[level] = b
    path.index[level] = root
    path.rank[level] = block_find(b, wide, usage, order)
    path.last = level


cdef inline void tree_seek_first(State *q, bint wide, uint32_t root, Path *path) noexcept nogil:
    cdef Block *b = block_at(q, wide, root)
    cdef int level = 0
    while True:
        path.block[level] = b
        path.index[level] = root
        path.rank[level] = 0
        if b.height == 0:
            break
        root = ref_at(b, 0)
        b = block_at(q, wide, root)
        level += 1
    path.last = level


cdef inline void tree_renew(State *q, bint wide, Path *path, int level) noexcept nogil:
    """Least estimates above the block at `level`, as far as they change."""
    cdef int64_t least
    cdef Block *above
    while level:
        least = path.block[level].least
        level -= 1
        above = path.block[level]
        if estimate_at(above, path.rank[level]) == least:
            return
        block_estimate(above, path.rank[level], least)


cdef void tree_insert(
    State *q, bint wide, uint32_t *root, double usage, uint64_t order, int64_t estimate, uint32_t ref
) noexcept nogil:
    cdef Path path
    if root[0] == 0:
        root[0] = block_take(q, wide)
        block_open(block_at(q, wide, root[0]), wide, 0, usage, order, estimate, ref)
        return
    tree_seek(q, wide, root[0], usage, order, &path)
    tree_open(q, wide, root, &path, usage, order, estimate, ref)


cdef inline void tree_open(
    State *q, bint wide, uint32_t *root, Path *path, double usage, uint64_t order, int64_t estimate, uint32_t ref
) noexcept nogil:
    """Put a slot in at the end of the path."""
    cdef Block *b = path.block[path.last]
    cdef int64_t least = b.least
    if b.count == BLOCK_SLOTS:
        tree_split(q, wide, root, path, usage, order, estimate, ref)
        return
    block_open(b, wide, path.rank[path.last], usage, order, estimate, ref)
    if estimate < least:
        tree_renew(q, wide, path, path.last)


cdef void tree_split(
    State *q, bint wide, uint32_t *root, Path *path, double usage, uint64_t order, int64_t estimate, uint32_t ref
) noexcept nogil:
    """Put a slot in where the leaf is full."""
    cdef Block *b
    cdef Block *right
    cdef uint32_t new
    cdef int level = path.last
    cdef int i = path.rank[level]
    cdef int kept
    cdef bint at_end
    while True:
        b = path.block[level]
        if b.count < BLOCK_SLOTS:
            block_open(b, wide, i, usage, order, estimate, ref)
            tree_renew(q, wide, path, level)
            return
        # Full: the upper half moves to a new block at the right; at the right end of the tree, where ever greater keys
        # come in, only the new slot does, so that blocks stay full.
        new = block_take(q, wide)
        right = block_at(q, wide, new)
        right.height = b.height
        at_end = i == BLOCK_SLOTS
        for kept in range(level):
            if path.rank[kept] + 1 < path.block[kept].count:
                at_end = False
        kept = BLOCK_SLOTS if at_end else BLOCK_SLOTS // 2
        block_append(right, wide, b, kept)
        block_renew(b)
        if at_end or i > kept:
            block_open(right, wide, i - kept, usage, order, estimate, ref)
        else:
            block_open(b, wide, i, usage, order, estimate, ref)
        # The new block is the next slot to insert, one level up.
        usage = usage_at(right, 0) if wide else 0.0
        order = order_at(right, 0)
        if right.height:
            block_lowest(right, wide)
        estimate = right.least
        ref = new
        if level == 0:
            new = block_take(q, wide)
            b = block_at(q, wide, new)
            right = path.block[0]
            b.height = right.height + 1
            block_open(b, wide, 0, -INFINITY, 0, right.least, path.index[0])
            block_open(b, wide, 1, usage, order, estimate, ref)
            root[0] = new
            return
        level -= 1
        block_estimate(path.block[level], path.rank[level], b.least)
        i = path.rank[level] + 1


cdef void tree_close(State *q, bint wide, uint32_t *root, Path *path) noexcept nogil:
    """Take out the slot at the end of the path."""
    cdef int level = path.last
    cdef int i = path.rank[level]
    cdef int other, at
    cdef uint32_t index
    cdef Block *b
    cdef Block *above
    cdef Block *left
    cdef Block *right
    cdef Pool *pool = &q.wide if wide else &q.narrow
    while True:
        index = path.index[level]
        b = path.block[level]
        block_close(b, wide, i)
        if level == 0:
            if b.count == 0:
                root[0] = 0
                pool_give(pool, index)
            elif b.count == 1 and b.height:
                root[0] = ref_at(b, 0)
                pool_give(pool, index)
            return
        above = path.block[level - 1]
        at = path.rank[level - 1]
        if b.count == 0:
            pool_give(pool, index)
            i = at
            level -= 1
            continue
        # (A first block is left alone: jobs leave from the front, and so it goes by itself.)
        if b.count < MERGE_BELOW and at:
            other = at + 1 if at + 1 < above.count else at - 1
            if block_at(q, wide, ref_at(above, other)).count + b.count <= MERGED_MAX:
                if other < at:
                    other, at = at, other
                left = block_at(q, wide, ref_at(above, at))
                right = block_at(q, wide, ref_at(above, other))
                if right.height:
                    # The key of an inner block's rank 0 is not kept: what stands above it is.
                    right.slot[slot_at(right, 0)].order = order_at(above, other)
                    if wide:
                        right.usage[slot_at(right, 0)] = usage_at(above, other)
                block_append(left, wide, right, 0)
                block_estimate(above, at, left.least)
                pool_give(pool, ref_at(above, other))
                i = other
                level -= 1
                continue
        tree_renew(q, wide, path, level)
        return


cdef void tree_remove(State *q, bint wide, uint32_t *root, double usage, uint64_t order) noexcept nogil:
    cdef Path path
    tree_seek(q, wide, root[0], usage, order, &path)
    tree_close(q, wide, root, &path)


cdef void tree_move(
    State *q, uint32_t *root, uint32_t ref, double old_usage, uint64_t old_order,
    double usage, uint64_t order, int64_t estimate
) noexcept nogil:
    """Give the slot of `ref`, which has the old key in a wide tree, a new key and estimate."""
    cdef Path path, to
    cdef Block *b
    cdef int i
    cdef int64_t least
    tree_seek_first(q, True, root[0], &path)
    b = path.block[path.last]
    if ref_at(b, 0) != ref:
        tree_seek(q, True, root[0], old_usage, old_order, &path)
        b = path.block[path.last]
    i = path.rank[path.last]
    if usage == old_usage and order == old_order:
        least = b.least
        block_estimate(b, i, estimate)
        if b.least != least:
            tree_renew(q, True, &path, path.last)
        return
    tree_seek(q, True, root[0], usage, order, &to)
    if b.count == 1:
        tree_close(q, True, root, &path)
        tree_insert(q, True, root, usage, order, estimate, ref)
    elif to.block[to.last] == path.block[path.last]:
        least = b.least
        block_close(b, True, i)
        block_open(b, True, to.rank[to.last] - (to.rank[to.last] > i), usage, order, estimate, ref)
        if b.least != least:
            tree_renew(q, True, &path, path.last)
    elif path.last and path.rank[path.last - 1] and b.count <= MERGE_BELOW:
        tree_close(q, True, root, &path)
        tree_insert(q, True, root, usage, order, estimate, ref)
    else:
        # No block goes: both paths stay as they are.
        least = b.least
        block_close(b, True, i)
        if b.least != least:
            tree_renew(q, True, &path, path.last)
        tree_open(q, True, root, &to, usage, order, estimate, ref)


cdef inline void tree_close_first(State *q, bint wide, uint32_t *root) noexcept nogil:
    """Take out the first slot of the tree."""
    cdef Path path
    cdef Block *b = block_at(q, wide, root[0])
    if b.height == 0 and b.count > 1:
        block_close(b, wide, 0)
    else:
        tree_seek_first(q, wide, root[0], &path)
        tree_close(q, wide, root, &path)


cdef inline Block *tree_first(State *q, bint wide, uint32_t root) noexcept nogil:
    """The leaf whose rank 0 is the first of the tree."""
    cdef Block *b = block_at(q, wide, root)
    while b.height:
        b = block_at(q, wide, ref_at(b, 0))
    return b


cdef inline Block *tree_start(State *q, bint wide, uint32_t root, uint32_t *after) noexcept nogil:
    """The first leaf of the tree and the one after it, or 0."""
    cdef Block *b = block_at(q, wide, root)
    after[0] = 0
    while b.height:
        after[0] = ref_at(b, 1) if b.count > 1 else (ref_at(block_at(q, wide, after[0]), 0) if after[0] else 0)
        b = block_at(q, wide, ref_at(b, 0))
    return b


cdef uint32_t tree_second(State *q, bint wide, uint32_t root) noexcept nogil:
    """The reference of the second slot of the tree, or 0."""
    cdef uint32_t after
    cdef Block *b = tree_start(q, wide, root, &after)
    if b.count > 1:
        return ref_at(b, 1)
    return ref_at(block_at(q, wide, after), 0) if after else 0


cdef uint32_t tree_list(State *q, bint wide, uint32_t root, uint32_t *refs) noexcept nogil:
    """Write all references in order; how many."""
    cdef Block *b
    cdef uint32_t count = 0
    cdef int i
    if root == 0:
        return 0
    b = block_at(q, wide, root)
    for i in range(b.count):
        if b.height:
            count += tree_list(q, wide, ref_at(b, i), refs + count)
        else:
            refs[count] = ref_at(b, i)
            count += 1
    return count


cdef void tree_free(State *q, bint wide, uint32_t root) noexcept nogil:
    cdef Block *b
    cdef int i
    if root:
        b = block_at(q, wide, root)
        if b.height:
            for i in range(b.count):
                tree_free(q, wide, ref_at(b, i))
        pool_give(&q.wide if wide else &q.narrow, root)


cdef uint32_t tree_fit(State *q, uint32_t root, int64_t left) noexcept nogil:
    """A user's first candidate that takes no longer than `left`. A block without one is not entered; beyond that only
    SECONDs that do not count are passed: those of the user's batches whose first job stands further back, by priority.
    """
    cdef Block *b = block_at(q, False, root)
    cdef uint32_t found
    cdef int i, slot
    for i in range(b.count):
        slot = slot_at(b, i)
        if b.slot[slot].estimate > left:
            continue
        found = b.ref[slot]
        if b.height:
            found = tree_fit(q, found, left)
            if found:
                return found
        elif not b.slot[slot].order & KEY_SECOND or left < session_at(q, job_at(q, found).owner).condition:
            return found
    return 0


cdef inline uint32_t tree_front(State *q, uint32_t root, uint64_t *key) noexcept nogil:
    """A user's first candidate without restrictions, and its key."""
    cdef Block *b = tree_first(q, False, root)
    cdef int slot = slot_at(b, 0)
    if b.slot[slot].order & KEY_SECOND:
        return tree_front_from(q, root, key)
    key[0] = b.slot[slot].order
    return b.ref[slot]


cdef uint32_t tree_front_from(State *q, uint32_t root, uint64_t *key) noexcept nogil:
    """The same, past SECONDs at the front."""
    cdef Block *b = block_at(q, False, root)
    cdef uint32_t found
    cdef int i
    for i in range(b.count):
        if b.height:
            found = tree_front_from(q, ref_at(b, i), key)
            if found:
                return found
        elif not order_at(b, i) & KEY_SECOND:
            key[0] = order_at(b, i)
            return ref_at(b, i)
    return 0


# --- usage ------------------------------------------------------------------------------------------------------------

cdef inline double usage_per_share(Node *n) noexcept nogil:
    return (n.settled + n.flight) / n.shares


cdef inline double time_usage(int64_t time) noexcept nogil:
    """A double of the same order, for trees ordered by times from 0 on."""
    cdef int64_t distance = time - (<int64_t>1 << 62)
    cdef uint64_t bits = <uint64_t>distance if distance >= 0 else SIGN | -<uint64_t>distance
    cdef double usage
    memcpy(&usage, &bits, sizeof(usage))
    return usage


cdef void exponent_limit(State *q) noexcept nogil:
    """Set the first instant that is more than EXPONENTS_MAX half-lives past the exponent."""
    cdef uint64_t half_lives = <uint64_t>q.exponent + EXPONENTS_MAX + 1
    cdef bint far = half_lives > ~<uint64_t>0 // <uint64_t>q.half_life
    q.charge_end = ~<uint64_t>0 if far else half_lives * <uint64_t>q.half_life


cdef int renormalise(State *q, int64_t exponents) noexcept nogil:
    cdef uint32_t i
    cdef int shift = <int>(exponents if exponents < 5000 else 5000)
    cdef Node *n
    cdef Device *d
    settle(q)
    for i in range(q.nodes.used):
        n = node_at(q, i)
        n.settled = ldexp(n.settled, -shift)
        n.flight = ldexp(n.flight, -shift)
        n.key = usage_per_share(n)
    for i in range(q.devices.used):
        d = device_at(q, i)
        d.run_charge = ldexp(d.run_charge, -shift)
    q.exponent += exponents
    exponent_limit(q)
    # Exact powers of two keep the order, but for usage so old that it underflows: those become equal.
    for i in range(q.devices.used):
        rebuild(q, device_at(q, i).root_entry)
    return 0


cdef void rebuild(State *q, uint32_t account) noexcept nogil:
    cdef Entry *e = entry_at(q, account)
    cdef uint32_t old = e.root
    e.root = 0
    if old:
        rebuild_from(q, e, old)


cdef void rebuild_from(State *q, Entry *account, uint32_t index) noexcept nogil:
    cdef Block *b = block_at(q, True, index)
    cdef Entry *child
    cdef Node *n
    cdef int i
    for i in range(b.count):
        if b.height:
            rebuild_from(q, account, ref_at(b, i))
        else:
            child = entry_at(q, ref_at(b, i))
            n = node_at(q, entry_node(q, ref_at(b, i)))
            if n.flags & FLAG_ACCOUNT:
                rebuild(q, ref_at(b, i))
            tree_insert(q, True, &account.root, n.key, entry_seq(q, child, n), entry_least(q, child, n), ref_at(b, i))
    pool_give(&q.wide, index)


cdef inline double charge_rate(State *q, int64_t start, int64_t *n) noexcept nogil:
    """K * g(start) but for the factor 2**n."""
    n[0] = start // q.half_life
    return q.k * exp2(cadenza_fraction(start - n[0] * q.half_life, q.half_life))


cdef inline double charge_piece(State *q, double rate, int64_t n, int64_t duration) noexcept nogil:
    """The cost of `duration` at a rate, times 2**-exponent. A product with 2**n is rounded as `ldexp` rounds."""
    cdef double power
    cdef uint64_t bits
    n -= q.exponent
    if n < -1022:
        return ldexp(rate * expm1((<double>duration / 1e9) / q.k), <int>(n if n > -5000 else -5000))
    bits = <uint64_t>(n + 1023) << 52
    memcpy(&power, &bits, sizeof(power))
    return rate * expm1((<double>duration / 1e9) / q.k) * power


cdef inline void charge_prepare(State *q, int64_t start, int64_t duration) noexcept nogil:
    """Move the exponent if the end of a charge is far from it."""
    cdef uint64_t end = <uint64_t>start + <uint64_t>duration
    if end >= q.charge_end:
        renormalise(q, <int64_t>(end // <uint64_t>q.half_life) - q.exponent - EXPONENTS_KEPT)


cdef double charge_cost(State *q, int64_t start, int64_t duration) noexcept nogil:
    """The integral of g over [start, start + duration], times 2**-exponent (6). May move the exponent."""
    cdef int64_t n
    cdef double rate
    charge_prepare(q, start, duration)
    if duration >= q.charge_max:
        start += duration - q.charge_max
        duration = q.charge_max
    rate = charge_rate(q, start, &n)
    return charge_piece(q, rate, n, duration)


cdef double run_cost(State *q, Device *d, int64_t duration) noexcept nogil:
    """charge_cost from the start of a run, whose rate is known."""
    if duration >= q.charge_max:
        return charge_cost(q, d.run_start, duration)
    charge_prepare(q, d.run_start, duration)
    return charge_piece(q, d.run_rate, d.run_half_lives, duration)


# --- entries ----------------------------------------------------------------------------------------------------------

cdef inline uint64_t entry_seq(State *q, Entry *e, Node *n) noexcept nogil:
    """seq of the pick without restrictions of an entry that has candidates."""
    cdef uint64_t key = 0
    if n.flags & FLAG_ACCOUNT:
        return order_at(tree_first(q, True, e.root), 0)
    tree_front(q, e.root, &key)
    return key_seq(key)


cdef inline int64_t entry_least(State *q, Entry *e, Node *n) noexcept nogil:
    return block_at(q, (n.flags & FLAG_ACCOUNT) != 0, e.root).least


cdef inline uint32_t entry_below(State *q, uint32_t node, uint32_t device) noexcept nogil:
    """The entry of a node on a device, or NO_ENTRY."""
    cdef uint32_t index = node
    cdef Entry *e
    while index != <uint32_t>NO_ENTRY:
        e = entry_at(q, index)
        if e.device == device:
            return index
        index = e.next
    return <uint32_t>NO_ENTRY


cdef uint32_t entry_ensure(State *q, uint32_t device, uint32_t node) noexcept nogil:
    """The entry of a node on a device, made if there is none (with those above). `lift` frees it if it stays empty."""
    cdef uint32_t index = entry_below(q, node, device)
    cdef uint32_t up
    cdef Entry *e
    if index != <uint32_t>NO_ENTRY:
        return index
    up = entry_ensure(q, device, node_at(q, node).parent) if node else <uint32_t>NO_ENTRY
    if node_at(q, node).entry.device == <uint32_t>NO_DEVICE:
        index = node
    else:
        index = pool_take(&q.extras)
        extra_at(q, index).node = node
        extra_at(q, index).entry.next = node_at(q, node).entry.next
        index |= <uint32_t>EXTRA
        node_at(q, node).entry.next = index
    e = entry_at(q, index)
    e.up = up
    e.root = 0
    e.device = device
    return index


cdef void entry_drop(State *q, uint32_t index) noexcept nogil:
    cdef Entry *e = entry_at(q, index)
    cdef uint32_t *link
    if index & <uint32_t>EXTRA:
        link = &node_at(q, entry_node(q, index)).entry.next
        while link[0] != index:
            link = &entry_at(q, link[0]).next
        link[0] = e.next
        pool_give(&q.extras, index & ~<uint32_t>EXTRA)
    else:
        e.device = <uint32_t>NO_DEVICE


cdef inline void entry_note(State *q, uint32_t index, Before *before) noexcept nogil:
    cdef Entry *e = entry_at(q, index)
    cdef Node *n
    before.present = e.root != 0
    if before.present:
        n = node_at(q, entry_node(q, index))
        before.seq = entry_seq(q, e, n)
        before.least = entry_least(q, e, n)


cdef inline void begin(State *q, uint32_t index, Before *before) noexcept nogil:
    """Note what is about to change; `lift` ends it."""
    settle(q)
    entry_note(q, index, before)


cdef void lift(State *q, uint32_t index, Before *before, bint usage_changed) noexcept nogil:
    """Bring the slots of an entry and of those above it up to date. Frees entries without candidates."""
    cdef Entry *e = entry_at(q, index)
    cdef Entry *up
    cdef Node *n
    cdef uint32_t up_index
    cdef double key
    cdef uint64_t seq = 0
    cdef int64_t least = 0
    cdef bint present
    cdef Before above
    while e.up != <uint32_t>NO_ENTRY:
        n = node_at(q, entry_node(q, index))
        present = e.root != 0
        if present:
            seq = entry_seq(q, e, n)
            least = entry_least(q, e, n)
        if not usage_changed:
            if present and before.present and seq == before.seq and least == before.least:
                return
            settle(q)
        key = usage_per_share(n)
        up_index = e.up
        up = entry_at(q, up_index)
        if up.up != <uint32_t>NO_ENTRY:
            entry_note(q, up_index, &above)
        if before.present and present:
            if key != n.key or seq != before.seq or least != before.least:
                tree_move(q, &up.root, index, n.key, before.seq, key, seq, least)
        elif before.present:
            tree_remove(q, True, &up.root, n.key, before.seq)
        elif present:
            tree_insert(q, True, &up.root, key, seq, least, index)
        if not present:
            entry_drop(q, index)
        if q.devices.used == 1:
            n.key = key  # there is no other slot
        before[0] = above
        index = up_index
        e = up


cdef inline int usage_begin(State *q, uint32_t node) noexcept nogil:
    """The usage or the shares of a node, and the usage of those above it, are about to change. What that moves waits
    until something else is asked or changed: all moves once."""
    if not (q.pending and q.pending_node == node):
        settle(q)
        q.pending = True
        q.pending_node = node
        q.pending_entry = <uint32_t>NO_ENTRY
        q.pending_device = <uint32_t>NO_DEVICE
    return 0


cdef void price(State *q, uint32_t node, uint32_t done) noexcept nogil:
    """Move the slots of a node and of the accounts above on every device but `done` (or NO_DEVICE), after their usage
    changed. From where a device comes in, `lift` goes up to the root."""
    cdef uint32_t index, below = <uint32_t>NO_ENTRY
    cdef Entry *e
    cdef Before before
    if done != <uint32_t>NO_DEVICE and q.devices.used == 1:
        return
    while node:
        index = node
        while index != <uint32_t>NO_ENTRY:
            e = entry_at(q, index)
            if (
                e.device != <uint32_t>NO_DEVICE and e.device != done
                and (below == <uint32_t>NO_ENTRY or entry_below(q, below, e.device) == <uint32_t>NO_ENTRY)
            ):
                begin(q, index, &before)
                lift(q, index, &before, True)
            index = e.next
        below = node
        node = node_at(q, node).parent


cdef void settle_now(State *q) noexcept nogil:
    cdef Node *n = node_at(q, q.pending_node)
    q.pending = False
    if q.pending_entry != <uint32_t>NO_ENTRY:
        lift(q, q.pending_entry, &q.pending_before, True)
        if q.devices.used == 1:
            return
    price(q, q.pending_node, q.pending_device)
    while n.depth:
        n.key = usage_per_share(n)
        n = node_at(q, n.parent)


cdef inline void settle(State *q) noexcept nogil:
    """Move the slots that a change of usage has left where they were."""
    if q.pending:
        settle_now(q)


# --- candidates -------------------------------------------------------------------------------------------------------

cdef inline bint job_disorders(State *q, Job *j) noexcept nogil:
    """Whether a later candidate of the same user may have a smaller seq because of this one."""
    return (j.key >> 50) != 100 or (j.kind != FAIR_SHARE and session_at(q, j.owner).batch)


cdef inline void hint_set(Job *j, uint32_t block) noexcept nogil:
    j.hint_low = <uint16_t>block
    j.hint_high = <uint8_t>(block >> 16)


cdef inline void hint_fetch(State *q, Job *j) noexcept nogil:
    """Ask for the block in which a fair-share job most likely is, before its user's entry has come to tell. Nothing is
    read there: a wrong hint only asks in vain."""
    cdef uint32_t block = j.hint_low | <uint32_t>j.hint_high << 16
    if block < q.narrow.used:
        fetch(block_at(q, False, block), NARROW_SIZE)


cdef inline void candidate_insert(State *q, Device *d, Entry *e, uint32_t index) noexcept nogil:
    cdef Job *j = job_at(q, index)
    cdef Block *b = block_at(q, False, e.root)
    d.disorder += job_disorders(q, j)
    if e.root and b.height == 0 and b.count < BLOCK_SLOTS and order_at(b, b.count - 1) < j.key:
        block_open(b, False, b.count, 0.0, j.key, j.estimate, index)
    else:
        tree_insert(q, False, &e.root, 0.0, j.key, j.estimate, index)
    hint_set(j, e.root)


cdef inline void candidate_remove(State *q, Device *d, Entry *e, uint32_t index) noexcept nogil:
    cdef Job *j = job_at(q, index)
    tree_remove(q, False, &e.root, 0.0, j.key)
    d.disorder -= job_disorders(q, j)


cdef inline double session_usage(Job *j) noexcept nogil:
    """The first part of a job's key in its session's tree: a batch's estimate, its first job before all (5.3)."""
    return time_usage(j.estimate if j.key & NOT_FIRST else 0)


cdef inline void session_insert(State *q, Session *s, uint32_t index) noexcept nogil:
    cdef Job *j = job_at(q, index)
    tree_insert(q, s.batch, &s.root, session_usage(j), j.key, j.estimate, index)


cdef inline void session_remove(State *q, Session *s, uint32_t index) noexcept nogil:
    cdef Job *j = job_at(q, index)
    tree_remove(q, s.batch, &s.root, session_usage(j), j.key)


cdef inline int64_t time_left(int64_t deadline, int64_t now) noexcept nogil:
    return FOREVER if deadline == FOREVER else deadline - now


cdef void session_withdraw(State *q, Device *d, Entry *e, uint32_t session) noexcept nogil:
    cdef Session *s = session_at(q, session)
    if s.second_stands:
        candidate_remove(q, d, e, s.second)
        s.second_stands = False
    if s.candidate_stands:
        candidate_remove(q, d, e, s.candidate)
        s.candidate_stands = False
    if s.lapse_stands:
        tree_remove(q, True, &d.lapses, time_usage(s.lapse), session)
        s.lapse_stands = False


cdef inline void session_put(State *q, Device *d, Entry *e, uint32_t record, uint64_t bits, uint32_t job) noexcept nogil:
    """Let a record of the session stand in the owner's queue for a job of the session."""
    cdef Job *r = job_at(q, record)
    cdef Job *j = job_at(q, job)
    r.key = (j.key & ~NOT_FIRST) | bits
    r.estimate = j.estimate
    candidate_insert(q, d, e, record)


cdef void session_stand(State *q, uint32_t session) noexcept nogil:
    """Let a session stand in its owner's queue as it has to, after whatever changed about it."""
    cdef Session *s = session_at(q, session)
    cdef Device *d = device_at(q, s.device)
    cdef bint wanted = s.standing and s.size and d.active != session
    cdef uint32_t candidate = 0, second = 0, entry
    cdef int64_t left = FOREVER
    cdef Job *j
    cdef Before before
    if not wanted and not s.candidate_stands:
        return
    if wanted:
        candidate = ref_at(tree_first(q, s.batch, s.root), 0)
        if s.batch:
            left = time_left(s.fit_deadline, d.clock)
            j = job_at(q, candidate)
            if not j.key & NOT_FIRST:
                second = tree_second(q, True, s.root)
            if j.estimate > left:
                candidate = second
                second = 0
                if candidate and job_at(q, candidate).estimate > left:
                    candidate = 0
            elif second and job_at(q, second).estimate >= j.estimate:
                second = 0
    entry = entry_ensure(q, s.device, s.user)
    begin(q, entry, &before)
    session_withdraw(q, d, entry_at(q, entry), session)
    if candidate:
        j = job_at(q, candidate)
        s.candidate_job = candidate
        s.candidate_stands = True
        session_put(q, d, entry_at(q, entry), s.candidate, KEY_SESSION, candidate)
        if s.batch and s.fit_deadline != FOREVER:
            s.lapse = s.fit_deadline - j.estimate
            s.lapse_stands = True
            tree_insert(q, True, &d.lapses, time_usage(s.lapse), session, s.lapse, session)
        if second:
            s.condition = j.estimate
            s.second_job = second
            s.second_stands = True
            session_put(q, d, entry_at(q, entry), s.second, KEY_SESSION | KEY_SECOND, second)
    lift(q, entry, &before, False)


cdef int expire(State *q, uint32_t device, int64_t now) except -1 nogil:
    """Bring the candidates of batches to a later instant."""
    cdef Device *d = device_at(q, device)
    cdef uint32_t session
    if now > d.clock:
        d.clock = now
    while d.lapses:
        session = ref_at(tree_first(q, True, d.lapses), 0)
        if session_at(q, session).lapse >= d.clock:
            break
        reserve(q)
        session_stand(q, session)
    return 0


# --- dispatch ---------------------------------------------------------------------------------------------------------

cdef struct Context:
    uint32_t device
    uint32_t entry   # of the user whose candidate was chosen
    int64_t holder   # its jobs are not restricted; or -1
    int64_t without  # this user has no candidate; or -1


cdef struct Best:
    uint32_t job
    uint32_t entry
    double usage
    uint64_t seq


cdef inline bint is_below(State *q, uint32_t node, int64_t holder) noexcept nogil:
    """Whether `holder` is the node or above it."""
    while True:
        if node == holder:
            return True
        if node == 0:
            return False
        node = node_at(q, node).parent


cdef uint32_t entry_toward(State *q, uint32_t account, int64_t target, uint32_t device) noexcept nogil:
    """The entry of the account's child on the way to a node that is below the account, or NO_ENTRY."""
    cdef uint32_t node
    cdef uint8_t depth = node_at(q, account).depth
    if target < 0 or node_at(q, <uint32_t>target).depth <= depth:
        return <uint32_t>NO_ENTRY
    node = <uint32_t>target
    while node_at(q, node).depth > depth + 1:
        node = node_at(q, node).parent
    return entry_below(q, node, device) if node_at(q, node).parent == account else <uint32_t>NO_ENTRY


cdef uint32_t choose(State *q, uint32_t index, int64_t left, Context *c) noexcept nogil:
    """The pick below an entry among candidates that take no longer than `left` (holder's: all): a Job, or 0."""
    cdef Entry *e
    cdef Node *n
    cdef uint32_t exempt, thinned, found, node
    cdef double usage
    cdef uint64_t seq, key = 0
    cdef Best best
    cdef int i
    while True:
        e = entry_at(q, index)
        node = entry_node(q, index)
        if e.root == 0 or node == c.without:
            return 0
        if node == c.holder:
            left = FOREVER
        n = node_at(q, node)
        if not n.flags & FLAG_ACCOUNT:
            c.entry = index
            return tree_front(q, e.root, &key) if left == FOREVER else tree_fit(q, e.root, left)
        if left == FOREVER and c.without < 0:
            index = ref_at(tree_first(q, True, e.root), 0)
            continue
        exempt = entry_toward(q, node, c.holder, c.device) if left != FOREVER else <uint32_t>NO_ENTRY
        thinned = entry_toward(q, node, c.without, c.device) if c.without >= 0 else <uint32_t>NO_ENTRY
        if left == FOREVER and thinned == <uint32_t>NO_ENTRY:
            index = ref_at(tree_first(q, True, e.root), 0)
            continue
        # The children on the way to the holder and to the user to leave out have picks of their own kind.
        best.job = 0
        choose_child(q, e.root, left, exempt, thinned, &best, c)
        if exempt == thinned:
            thinned = <uint32_t>NO_ENTRY
        for i in range(2):
            index = thinned if i else exempt
            found = choose(q, index, left, c) if index != <uint32_t>NO_ENTRY else 0
            if found:
                usage = node_at(q, entry_node(q, index)).key
                seq = key_seq(job_at(q, found).key)
                if best.job == 0 or usage < best.usage or (usage == best.usage and seq < best.seq):
                    best.job = found
                    best.entry = c.entry
                    best.usage = usage
                    best.seq = seq
        c.entry = best.entry
        return best.job


cdef bint choose_child(
    State *q, uint32_t root, int64_t left, uint32_t exempt, uint32_t thinned, Best *best, Context *c
) noexcept nogil:
    """The best pick among the children but `exempt` and `thinned`; whether the search is over.

    A slot whose least estimate is above `left` is not entered, so every child that is entered has a pick, and the
    first one decides, unless others have exactly the same usage / shares: those are compared by the seq of their picks,
    in the order of their unrestricted picks' seq, which is a lower bound while no candidate on the device has a priority
    or is a batch's. What remains is a walk over the children that are tied, have a candidate that fits, and (with that
    bound) an unrestricted pick older than the best one found.
    """
    cdef Block *b = block_at(q, True, root)
    cdef uint32_t ref, found
    cdef uint64_t seq
    cdef int i, slot
    for i in range(b.count):
        slot = slot_at(b, i)
        if b.slot[slot].estimate > left:
            continue
        ref = b.ref[slot]
        if b.height:
            if best.job and b.usage[slot] > best.usage:
                return True
            if choose_child(q, ref, left, exempt, thinned, best, c):
                return True
            continue
        if best.job:
            if b.usage[slot] > best.usage:
                return True
            if b.slot[slot].order > best.seq and (left == FOREVER or device_at(q, c.device).disorder == 0):
                return True
        if ref == exempt or ref == thinned:
            continue
        found = choose(q, ref, left, c)
        if found:
            seq = key_seq(job_at(q, found).key)
            if best.job == 0 or seq < best.seq:
                best.job = found
                best.entry = c.entry
                best.usage = b.usage[slot]
                best.seq = seq
            if left == FOREVER:
                return True
    return False


cdef uint32_t fair_pick(State *q, uint32_t device, int64_t now, int64_t without, Context *c) noexcept nogil:
    """Rule 3: a record in a user's tree of candidates, or 0."""
    cdef Device *d = device_at(q, device)
    cdef uint32_t top = 0 if d.inside < 0 else <uint32_t>d.inside
    cdef uint32_t entry
    cdef int64_t left = time_left(d.next_start, now)
    c.device = device
    c.holder = d.next_holder
    c.without = without
    entry = entry_below(q, top, device)
    if entry == <uint32_t>NO_ENTRY:
        return 0
    if left != FOREVER and c.holder >= 0 and is_below(q, top, c.holder):
        left = FOREVER
    return choose(q, entry, left, c)


cdef inline uint32_t candidate_job(State *q, uint32_t index) noexcept nogil:
    """The queued job that a record in a user's tree stands for."""
    cdef Job *j = job_at(q, index)
    if j.kind == CANDIDATE:
        return session_at(q, j.owner).candidate_job
    if j.kind == SECOND:
        return session_at(q, j.owner).second_job
    return index


cdef int64_t session_pick(State *q, Device *d, int64_t now) noexcept nogil:
    """Rule 2."""
    cdef Session *s = session_at(q, d.active)
    cdef int64_t left, fit
    cdef uint32_t first, second = 0
    cdef Job *j
    cdef bint fits
    if s.size == 0:
        return -2
    left = time_left(d.next_start, now)
    if left != FOREVER and d.next_holder >= 0 and is_below(q, s.user, d.next_holder):
        left = FOREVER
    first = ref_at(tree_first(q, s.batch, s.root), 0)
    j = job_at(q, first)
    if not s.batch:
        return first if j.estimate <= left else -2
    fit = time_left(s.fit_deadline, now)
    if not j.key & NOT_FIRST:
        second = tree_second(q, True, s.root)
    fits = j.estimate <= fit
    if fits and j.estimate <= left:
        return first
    if second:
        j = job_at(q, second)
        if j.estimate <= fit:
            fits = True
            if j.estimate <= left:
                return second
    return -4 if fits else -3


cdef inline int64_t front_pick(State *q, Device *d) noexcept nogil:
    """Rule 3 without any restriction: the first below the first, down to the job."""
    cdef uint32_t index = d.root_entry
    cdef Entry *e = entry_at(q, index)
    cdef Block *b
    cdef uint32_t found
    cdef uint64_t key
    if e.root == 0:
        return -1
    while node_at(q, entry_node(q, index)).flags & FLAG_ACCOUNT:
        index = ref_at(tree_first(q, True, e.root), 0)
        e = entry_at(q, index)
    found = tree_front(q, e.root, &key)
    if key & KEY_SESSION:
        return candidate_job(q, found)
    b = tree_first(q, False, e.root)
    if ref_at(b, 0) != found:
        return found
    q.picked = found
    q.picked_entry = index
    return found


cdef int64_t queue_pick(State *q, uint32_t device, int64_t now) except? -9 nogil:
    cdef Device *d = device_at(q, device)
    cdef uint32_t found
    cdef Context c
    if q.pending:
        reserve(q)
    if now > d.clock:
        if d.lapses:
            expire(q, device, now)
        d.clock = now
    if d.calibrations and not (d.outside_dedicated and d.active and not session_at(q, d.active).batch):
        return ref_at(tree_first(q, False, d.calibrations), 0)
    if d.active:
        return session_pick(q, d, now)
    if d.inside < 0 and d.next_start == FOREVER:
        return front_pick(q, d)
    found = fair_pick(q, device, now, -1, &c)
    return candidate_job(q, found) if found else -1


# --- changes ----------------------------------------------------------------------------------------------------------

cdef inline int reserve(State *q) except -1 nogil:
    """What every change begins with: memory for it, so that nothing fails halfway, and nothing pending."""
    reserve_memory(q)
    settle(q)
    return 0


cdef inline int reserve_memory(State *q) except -1 nogil:
    cdef uint32_t blocks = <uint32_t>BLOCKS_KEPT * (q.devices.used + 1)
    q.picked = 0
    if q.jobs.spare < 4 or q.extras.spare < DEPTH_MAX or q.wide.spare < blocks or q.narrow.spare < BLOCKS_KEPT:
        pool_reserve(&q.jobs, 4)
        pool_reserve(&q.extras, DEPTH_MAX)
        pool_reserve(&q.wide, blocks)
        pool_reserve(&q.narrow, BLOCKS_KEPT)
    return 0


cdef int queue_init(State *q, int64_t half_life) except -1 nogil:
    memset(q, 0, sizeof(State))
    pool_init(&q.jobs, sizeof(Job), 1)
    pool_init(&q.nodes, sizeof(Node), 0)
    pool_init(&q.extras, sizeof(Extra), 1)
    pool_init(&q.wide, WIDE_SIZE, 1)
    pool_init(&q.narrow, NARROW_SIZE, 1)
    pool_init(&q.sessions, sizeof(Session), 1)
    pool_init(&q.devices, sizeof(Device), 0)
    q.half_life = half_life
    q.k = (<double>half_life / 1e9) / log(2.0)
    q.charge_max = FOREVER if half_life > FOREVER // CHARGE_HALF_LIVES_MAX else CHARGE_HALF_LIVES_MAX * half_life
    exponent_limit(q)
    reserve(q)
    pool_reserve(&q.nodes, 1)
    node_take(q)
    node_at(q, 0).shares = 1.0
    node_at(q, 0).key = usage_per_share(node_at(q, 0))
    node_at(q, 0).flags = FLAG_ACCOUNT
    return 0


cdef void queue_free(State *q) noexcept nogil:
    pool_free(&q.jobs)
    pool_free(&q.nodes)
    pool_free(&q.extras)
    pool_free(&q.wide)
    pool_free(&q.narrow)
    pool_free(&q.sessions)
    pool_free(&q.devices)


cdef uint32_t node_take(State *q) noexcept nogil:
    cdef uint32_t index = pool_take(&q.nodes)
    cdef Node *n = node_at(q, index)
    n.entry.device = <uint32_t>NO_DEVICE
    n.entry.next = <uint32_t>NO_ENTRY
    return index


cdef inline uint32_t job_take(State *q, uint64_t key, int64_t estimate, uint8_t kind, uint32_t owner) noexcept nogil:
    cdef uint32_t index = pool_take_raw(&q.jobs)
    cdef Job *j = job_at(q, index)
    j.key = key
    j.estimate = estimate
    j.kind = kind
    j.owner = owner
    return index


cdef inline void job_give(State *q, uint32_t index) noexcept nogil:
    job_at(q, index).kind = FREE
    pool_give(&q.jobs, index)


cdef inline uint64_t job_key(int priority, uint64_t seq) noexcept nogil:
    return (<uint64_t>(100 - priority) << 50) | (seq << 2)


cdef inline uint64_t key_seq(uint64_t key) noexcept nogil:
    return (key >> 2) & SEQ_MAX


cdef int64_t queue_push(
    State *q, uint32_t device, uint32_t user, uint64_t seq, int priority, int64_t estimate
) except -1 nogil:
    cdef Device *d
    cdef uint32_t entry, index
    cdef Before before
    reserve_memory(q)
    d = device_at(q, device)
    node_at(q, user).flags |= FLAG_USER
    entry = entry_below(q, user, device)
    if entry == <uint32_t>NO_ENTRY:
        settle(q)
        entry = entry_ensure(q, device, user)
    index = job_take(q, job_key(priority, seq), estimate, FAIR_SHARE, entry)
    if q.pending and entry == q.pending_entry:
        candidate_insert(q, d, entry_at(q, entry), index)  # its slots are yet to be moved
    else:
        begin(q, entry, &before)
        candidate_insert(q, d, entry_at(q, entry), index)
        lift(q, entry, &before, False)
    d.fair_share_count += 1
    q.queued += 1
    return index


cdef int64_t queue_push_session(
    State *q, uint32_t session, uint64_t seq, int priority, int64_t estimate, bint first
) except -1 nogil:
    cdef Session *s
    cdef uint32_t index
    reserve(q)
    s = session_at(q, session)
    index = job_take(q, job_key(priority, seq) | (0 if first else NOT_FIRST), estimate, SESSION, session)
    session_insert(q, s, index)
    s.size += 1
    device_at(q, s.device).session_count += 1
    q.queued += 1
    session_stand(q, session)
    return index


cdef void session_job_remove(State *q, uint32_t index) noexcept nogil:
    """Off the session's tree; what stands for the session is not yet brought up to date."""
    cdef Session *s = session_at(q, job_at(q, index).owner)
    session_remove(q, s, index)
    s.size -= 1
    device_at(q, s.device).session_count -= 1


cdef int queue_remove(State *q, uint32_t job) except -1 nogil:
    cdef Job *j
    cdef Device *d
    cdef Entry *e
    cdef Block *b
    cdef uint32_t owner
    cdef int rank
    cdef Before before
    reserve(q)
    j = job_at(q, job)
    owner = j.owner
    if j.kind == FAIR_SHARE:
        hint_fetch(q, j)
        e = entry_at(q, owner)
        d = device_at(q, e.device)
        fetch_wide(block_at(q, True, entry_at(q, e.up).root))  # in case that the user's place changes
        b = block_at(q, False, e.root)
        rank = block_find(b, False, 0.0, j.key) if b.height == 0 else 0
        if rank and j.estimate > b.least and not order_at(b, 0) & KEY_SECOND:
            # Neither the first candidate nor the least estimate: nothing above changes.
            block_close(b, False, rank)
            d.disorder -= job_disorders(q, j)
        else:
            begin(q, owner, &before)
            candidate_remove(q, d, e, job)
            lift(q, owner, &before, False)
        d.fair_share_count -= 1
    elif j.kind == SESSION:
        session_job_remove(q, job)
        session_stand(q, owner)
    else:
        d = device_at(q, owner)
        tree_remove(q, False, &d.calibrations, 0.0, j.key)
        d.calibration_count -= 1
    job_give(q, job)
    q.queued -= 1
    return 0


cdef int queue_set_priority(State *q, uint32_t job, int priority) except -1 nogil:
    cdef Job *j
    cdef Device *d
    cdef Session *s
    cdef uint32_t owner
    cdef uint64_t key
    cdef Before before
    reserve(q)
    j = job_at(q, job)
    owner = j.owner
    key = (j.key & NOT_FIRST) | job_key(priority, key_seq(j.key))
    if key == j.key:
        return 0
    if j.kind == FAIR_SHARE:
        d = device_at(q, entry_at(q, owner).device)
        begin(q, owner, &before)
        candidate_remove(q, d, entry_at(q, owner), job)
        j.key = key
        candidate_insert(q, d, entry_at(q, owner), job)
        lift(q, owner, &before, False)
    else:
        s = session_at(q, owner)
        session_remove(q, s, job)
        j.key = key
        session_insert(q, s, job)
        session_stand(q, owner)
    return 0


cdef inline void fetch_next(State *q, Way *w) noexcept nogil:
    """Ask for what stands one read further on the way to a pick. What was read a run ago may have changed since, been
    freed, or been taken for something else: then some other record is asked for in vain. So nothing that is read here
    can be relied on, and every reference is checked against what has ever been given out before it is followed."""
    cdef Block *b
    cdef uint32_t node, after
    if w.at == WAY_ENTRY:
        after = entry_at(q, w.index).root
        node = entry_node(q, w.index)
        w.index = after
        w.at = WAY_END
        if node >= q.nodes.used:
            return
        if node_at(q, node).flags & FLAG_ACCOUNT:
            if after < q.wide.used:
                w.at = WAY_WIDE
                fetch_wide(block_at(q, True, after))
        elif after < q.narrow.used:
            w.at = WAY_NARROW
            cadenza_prefetch(<const char *>block_at(q, False, after))
    elif w.at == WAY_WIDE:
        b = block_at(q, True, w.index)
        after = ref_at(b, 0)
        w.index = after
        if b.height:
            if after >= q.wide.used:
                w.at = WAY_END
            elif b.height > 1:
                fetch_wide(block_at(q, True, after))
            else:
                cadenza_prefetch(<const char *>block_at(q, True, after))
        elif (after & ~<uint32_t>EXTRA) < (q.extras.used if after & <uint32_t>EXTRA else q.nodes.used):
            w.at = WAY_ENTRY
            cadenza_prefetch(<const char *>&b.usage[slot_at(b, 0)])
            cadenza_prefetch(<const char *>&b.slot[slot_at(b, 0)])
            cadenza_prefetch(<const char *>&b.slot[slot_at(b, 1)])  # soon the first one
            cadenza_prefetch(<const char *>entry_at(q, after))
        else:
            w.at = WAY_END
    elif w.at == WAY_NARROW:
        b = block_at(q, False, w.index)
        after = ref_at(b, 0)
        w.index = after
        if b.height:
            if after < q.narrow.used:
                cadenza_prefetch(<const char *>block_at(q, False, after))
            else:
                w.at = WAY_END
        else:
            w.at = WAY_END
            cadenza_prefetch(<const char *>&b.slot[slot_at(b, 0)])
            cadenza_prefetch(<const char *>&b.slot[slot_at(b, 1)])
            if 0 < b.count <= BLOCK_SLOTS:
                cadenza_prefetch(<const char *>&b.slot[slot_at(b, b.count - 1)])
            if after < q.jobs.used:
                cadenza_prefetch(<const char *>job_at(q, after))


cdef inline void fetch_picks(State *q, Device *d) noexcept nogil:
    """Ask for what the next picks of a device by fair share will look at. Each read on the way tells where the next one
    is, so each of the children of the root that come next is followed one read a run."""
    cdef Entry *e = entry_at(q, d.root_entry)
    cdef Block *b
    cdef uint32_t after
    cdef int i, at = AHEAD
    if e.root == 0:
        return
    for i in range(AHEAD - 1):
        d.way[i] = d.way[i + 1]
        fetch_next(q, &d.way[i])
    b = tree_start(q, True, e.root, &after)
    if at >= b.count and after:
        at -= b.count
        b = block_at(q, True, after)
    if at < b.count:
        d.way[AHEAD - 1].index = ref_at(b, at)
        d.way[AHEAD - 1].at = WAY_ENTRY
        cadenza_prefetch(<const char *>entry_at(q, d.way[AHEAD - 1].index))


cdef inline void fetch_place(State *q, uint32_t entry) noexcept nogil:
    """Ask for the block where a user comes to stand, now that its usage has changed."""
    cdef Node *n = node_at(q, entry_node(q, entry))
    cdef Block *b
    cdef int height
    if n.depth > 1:
        b = block_at(q, True, entry_at(q, entry_at(q, entry).up).root)
        height = b.height
        while height:
            b = block_at(q, True, ref_at(b, block_find(b, True, usage_per_share(n), 1) - 1))
            height -= 1  # the last one is not read
        fetch_wide(b)


cdef int queue_start(State *q, uint32_t job, int64_t now) except -1 nogil:
    cdef Job *j
    cdef Device *d
    cdef Node *n
    cdef Block *b = NULL
    cdef uint32_t user, device, owner, entry, picked
    cdef int64_t estimate
    cdef uint8_t kind
    cdef double charge
    picked = q.picked
    entry = q.picked_entry
    reserve(q)
    if job == picked:
        # The pick has just been here: its job is the first candidate of its user.
        kind = FAIR_SHARE
        owner = entry
        b = tree_first(q, False, entry_at(q, entry).root)
        estimate = estimate_at(b, 0)
    else:
        j = job_at(q, job)
        kind = j.kind
        owner = j.owner
        estimate = j.estimate
    if kind == CALIBRATION:
        d = device_at(q, owner)
        queue_remove(q, job)
        d.busy = True
        d.run_calibration = True
        d.run_start = now
        d.run_charge = 0.0
        return 0
    if kind == FAIR_SHARE:
        entry = owner
        user = entry_node(q, entry)
        device = entry_at(q, entry).device
        d = device_at(q, device)
        d.fair_share_count -= 1
    else:
        user = session_at(q, owner).user
        device = session_at(q, owner).device
        d = device_at(q, device)
        session_job_remove(q, job)
        session_stand(q, owner)
    charge_prepare(q, now, estimate)
    d.run_rate = charge_rate(q, now, &d.run_half_lives)
    d.run_start = now
    charge = run_cost(q, d, estimate)
    d.busy = True
    d.run_calibration = False
    d.run_user = user
    d.run_estimate = estimate
    d.run_charge = charge
    n = node_at(q, user)
    while True:
        n.flight += charge
        n.runs += 1
        if n.depth == 0:
            break
        n = node_at(q, n.parent)
    if kind == FAIR_SHARE:
        begin(q, entry, &q.pending_before)
        if job == picked:
            d.disorder -= (order_at(b, 0) >> 50) != 100
            tree_close_first(q, False, &entry_at(q, entry).root)
        else:
            candidate_remove(q, d, entry_at(q, entry), job)
    else:
        entry = <uint32_t>NO_ENTRY
    q.pending = True
    q.pending_node = user
    q.pending_entry = entry
    q.pending_device = device if kind == FAIR_SHARE else <uint32_t>NO_DEVICE
    job_give(q, job)
    q.queued -= 1
    return 0


cdef int queue_end(State *q, uint32_t device, double cost) except -1 nogil:
    """The run's in-flight charge goes; `cost` is settled."""
    cdef Device *d
    cdef Node *n
    reserve_memory(q)
    d = device_at(q, device)
    d.busy = False
    if d.run_calibration:
        return 0
    usage_begin(q, d.run_user)
    n = node_at(q, d.run_user)
    while True:
        n.runs -= 1
        n.flight = n.flight - d.run_charge if n.runs else 0.0
        n.settled += cost
        if n.depth == 0:
            break
        n = node_at(q, n.parent)
    d.run_charge = 0.0
    if q.pending_entry != <uint32_t>NO_ENTRY:
        fetch_place(q, q.pending_entry)
        fetch_picks(q, d)
    return 0


cdef int queue_finish(State *q, uint32_t device, int64_t now) except -1 nogil:
    cdef Device *d = device_at(q, device)
    cdef double cost = 0.0
    reserve_memory(q)  # the charge may move the exponent
    if not d.run_calibration and now != d.run_start:
        cost = run_cost(q, d, now - d.run_start)
    return queue_end(q, device, cost)


cdef int queue_charge(State *q, uint32_t user, int64_t start, int64_t duration) except -1 nogil:
    cdef double cost
    cdef Node *n = node_at(q, user)
    reserve_memory(q)
    cost = charge_cost(q, start, duration)
    usage_begin(q, user)
    n.flags |= FLAG_USER
    while True:
        n.settled += cost
        if n.depth == 0:
            break
        n = node_at(q, n.parent)
    return 0


cdef int queue_double(State *q, uint32_t device) except -1 nogil:
    cdef Device *d = device_at(q, device)
    cdef Node *n = node_at(q, d.run_user)
    cdef double charge, change
    reserve_memory(q)
    charge = run_cost(q, d, 2 * d.run_estimate)
    usage_begin(q, d.run_user)
    d.run_estimate *= 2
    change = charge - d.run_charge
    d.run_charge = charge
    while True:
        n.flight += change
        if n.depth == 0:
            break
        n = node_at(q, n.parent)
    return 0


cdef int queue_set_node(State *q, uint32_t node, double settled, double shares) except -1 nogil:
    """Usage and shares of one node alone."""
    cdef Node *n = node_at(q, node)
    reserve_memory(q)
    usage_begin(q, node)
    n.settled = settled
    n.shares = shares
    return 0


cdef struct Keyed:
    uint64_t key
    uint32_t job


cdef int keyed_compare(const void *x, const void *y) noexcept nogil:
    cdef uint64_t a = (<const Keyed *>x).key
    cdef uint64_t b = (<const Keyed *>y).key
    return (a > b) - (a < b)


cdef int queue_release(State *q, uint32_t session) except -1 nogil:
    cdef Session *s
    cdef Device *d
    cdef Job *j
    cdef uint32_t entry, index, count
    cdef uint32_t *jobs
    cdef Keyed *sorted_jobs
    cdef Before before
    reserve(q)
    s = session_at(q, session)
    if s.size == 0:
        return 0
    jobs = <uint32_t *>malloc(s.size * sizeof(uint32_t))
    sorted_jobs = <Keyed *>malloc(s.size * sizeof(Keyed))
    if jobs == NULL or sorted_jobs == NULL:
        free(jobs)
        free(sorted_jobs)
        with gil:
            PyErr_NoMemory()
    count = tree_list(q, s.batch, s.root, jobs)
    tree_free(q, s.batch, s.root)
    s.root = 0
    d = device_at(q, s.device)
    entry = entry_ensure(q, s.device, s.user)
    begin(q, entry, &before)
    session_withdraw(q, d, entry_at(q, entry), session)
    for index in range(count):
        j = job_at(q, jobs[index])
        j.key &= ~NOT_FIRST
        j.kind = FAIR_SHARE
        j.owner = entry
        sorted_jobs[index].key = j.key
        sorted_jobs[index].job = jobs[index]
    # In the user's order: then each goes where the one before has just gone.
    qsort(sorted_jobs, count, sizeof(Keyed), &keyed_compare)
    for index in range(count):
        candidate_insert(q, d, entry_at(q, entry), sorted_jobs[index].job)
    lift(q, entry, &before, False)
    free(jobs)
    free(sorted_jobs)
    s.size = 0
    d.session_count -= count
    d.fair_share_count += count
    return 0


cdef int queue_drop(State *q, uint32_t session, uint32_t *jobs) except -1 nogil:
    """Free all queued jobs of a session; their handles go to `jobs`, in session order."""
    cdef Session *s
    cdef uint32_t index, count = 0
    reserve(q)
    s = session_at(q, session)
    count = tree_list(q, s.batch, s.root, jobs)
    tree_free(q, s.batch, s.root)
    s.root = 0
    s.size = 0
    session_stand(q, session)
    for index in range(count):
        job_give(q, jobs[index])
    device_at(q, s.device).session_count -= count
    q.queued -= count
    return 0


# --- the surface ------------------------------------------------------------------------------------------------------

cdef int check_time(int64_t time) except -1:
    if time < 0:
        raise ValueError(f"a time is 0 to 2**63 - 1 ns, not {time}")
    return 0


cdef int check_length(int64_t length) except -1:
    if length <= 0:
        raise ValueError(f"a length is positive and below 2**63 ns, not {length}")
    return 0


cdef int check_shares(double shares) except -1:
    if not (shares > 0 and isfinite(shares)):
        raise ValueError(f"shares are positive and finite, not {shares}")
    return 0


cdef int check_job(int64_t seq, int64_t priority, int64_t estimate) except -1:
    if not 0 <= seq <= <int64_t>SEQ_MAX:
        raise ValueError(f"a seq is 0 to 2**48 - 1, not {seq}")
    if not -100 <= priority <= 100:
        raise ValueError(f"a priority is -100 to 100, not {priority}")
    return check_length(estimate)


cdef class Queue:
    """Share tree, devices, sessions and queued jobs. See `_queue.pyi` for each method's contract."""

    def __cinit__(self, int64_t half_life_ns):
        check_length(half_life_ns)
        queue_init(&self.state, half_life_ns)

    def __init__(self, half_life_ns):
        pass

    def __dealloc__(self):
        queue_free(&self.state)

    def copy(self):
        cdef Queue other = Queue.__new__(Queue, self.state.half_life)
        cdef State *to = &other.state
        cdef State *q = &self.state
        queue_free(to)
        to[0] = q[0]
        pool_init(&to.jobs, q.jobs.record_size, 0)  # nothing of this queue's may be freed with the other
        pool_init(&to.nodes, q.nodes.record_size, 0)
        pool_init(&to.extras, q.extras.record_size, 0)
        pool_init(&to.wide, q.wide.record_size, 0)
        pool_init(&to.narrow, q.narrow.record_size, 0)
        pool_init(&to.sessions, q.sessions.record_size, 0)
        pool_init(&to.devices, q.devices.record_size, 0)
        pool_copy(&to.jobs, &q.jobs)
        pool_copy(&to.nodes, &q.nodes)
        pool_copy(&to.extras, &q.extras)
        pool_copy(&to.wide, &q.wide)
        pool_copy(&to.narrow, &q.narrow)
        pool_copy(&to.sessions, &q.sessions)
        pool_copy(&to.devices, &q.devices)
        return other

    cdef Node *_node(self, int64_t node) except NULL:
        if not 0 <= node < self.state.nodes.used:
            raise ValueError(f"there is no node {node}")
        return node_at(&self.state, <uint32_t>node)

    cdef Node *_user(self, int64_t user) except NULL:
        cdef Node *n = self._node(user)
        if n.flags & FLAG_ACCOUNT:
            raise ValueError(f"node {user} is an account, not a user")
        return n

    cdef Device *_device(self, int64_t device) except NULL:
        if not 0 <= device < self.state.devices.used:
            raise ValueError(f"there is no device {device}")
        return device_at(&self.state, <uint32_t>device)

    cdef Session *_session(self, int64_t session) except NULL:
        cdef Session *s
        if 0 < session < self.state.sessions.used:
            s = session_at(&self.state, <uint32_t>session)
            if s.live:
                return s
        raise ValueError(f"there is no session {session}")

    cdef Job *_job(self, int64_t job) except NULL:
        cdef Job *j
        if 0 < job < self.state.jobs.used:
            j = job_at(&self.state, <uint32_t>job)
            if j.kind == FAIR_SHARE or j.kind == SESSION or j.kind == CALIBRATION:
                return j
        raise ValueError(f"there is no queued job {job}")

    # --- the share tree (6) ---

    def add_node(self, int64_t parent, double shares=1.0):
        cdef Node *above = self._node(parent)
        cdef Node *n
        cdef uint32_t index
        check_shares(shares)
        if above.flags & FLAG_USER:
            raise ValueError(f"node {parent} is a user, and users are leaves")
        if above.depth + 1 >= DEPTH_MAX:
            raise ValueError(f"node {parent} is too deep for a child")
        pool_reserve(&self.state.nodes, 1)
        index = node_take(&self.state)
        above.flags |= FLAG_ACCOUNT
        n = node_at(&self.state, index)
        n.parent = <uint32_t>parent
        n.depth = above.depth + 1
        n.shares = shares
        n.key = usage_per_share(n)
        return index

    def set_shares(self, int64_t node, double shares):
        cdef Node *n = self._node(node)
        check_shares(shares)
        queue_set_node(&self.state, <uint32_t>node, n.settled, shares)

    def shares(self, int64_t node):
        return self._node(node).shares

    def usage(self, int64_t node, int64_t now):
        cdef Node *n = self._node(node)
        cdef double g
        cdef int64_t back
        check_time(now)
        g = exp2(cadenza_fraction(now % self.state.half_life, self.state.half_life))
        back = self.state.exponent - now // self.state.half_life
        back = 5000 if back > 5000 else (-5000 if back < -5000 else back)
        return (ldexp(n.settled / g, <int>back), ldexp(n.flight / g, <int>back))

    def raw_usage(self, int64_t node):
        cdef Node *n = self._node(node)
        return (n.settled, n.flight, self.state.exponent)

    def restore_usage(self, int64_t node, double settled, int64_t exponent):
        cdef Node *n = self._node(node)
        cdef int64_t back
        if not (settled >= 0 and isfinite(settled)):
            raise ValueError(f"settled usage is not negative and finite, not {settled}")
        if exponent < 0:
            raise ValueError(f"an exponent is not negative, not {exponent}")
        if exponent > self.state.exponent:
            reserve(&self.state)
            renormalise(&self.state, exponent - self.state.exponent)
        back = exponent - self.state.exponent
        queue_set_node(
            &self.state, <uint32_t>node, ldexp(settled, <int>(back if back > -5000 else -5000)), n.shares
        )

    def normalised_usage(self, int64_t node):
        return usage_per_share(self._node(node))

    def charge(self, int64_t user, int64_t start, int64_t duration):
        self._user(user)
        check_time(start)
        check_length(duration)
        queue_charge(&self.state, <uint32_t>user, start, duration)

    # --- devices ---

    def add_device(self, bint calibration_outside_dedicated=False):
        cdef uint32_t index
        cdef Device *d
        reserve(&self.state)
        pool_reserve(&self.state.devices, 1)
        index = pool_take(&self.state.devices)
        d = device_at(&self.state, index)
        d.next_start = FOREVER
        d.inside = -1
        d.next_holder = -1
        d.outside_dedicated = calibration_outside_dedicated
        d.root_entry = entry_ensure(&self.state, index, 0)
        return index

    def set_window(self, int64_t device, int64_t inside, int64_t next_start, int64_t next_holder):
        cdef Device *d = self._device(device)
        if inside != -1:
            self._node(inside)
        if next_holder != -1:
            self._node(next_holder)
        check_time(next_start)
        d.inside = inside
        d.next_start = next_start
        d.next_holder = next_holder

    # --- sessions ---

    def add_session(self, int64_t device, int64_t user, bint batch):
        cdef uint32_t index
        cdef Session *s
        cdef Node *n
        self._device(device)
        n = self._user(user)
        reserve(&self.state)
        pool_reserve(&self.state.sessions, 1)
        n.flags |= FLAG_USER
        index = pool_take(&self.state.sessions)
        s = session_at(&self.state, index)
        s.live = True
        s.device = <uint32_t>device
        s.user = <uint32_t>user
        s.batch = batch
        s.fit_deadline = FOREVER
        s.candidate = job_take(&self.state, 0, 0, CANDIDATE, index)
        s.second = job_take(&self.state, 0, 0, SECOND, index)
        return index

    def remove_session(self, int64_t session):
        cdef Session *s = self._session(session)
        cdef Device *d = device_at(&self.state, s.device)
        if s.size:
            raise ValueError(f"session {session} has queued jobs")
        if d.active == session:
            d.active = 0
        job_give(&self.state, s.candidate)
        job_give(&self.state, s.second)
        s.live = False
        pool_give(&self.state.sessions, <uint32_t>session)

    def set_standing(self, int64_t session, bint standing):
        cdef Session *s = self._session(session)
        reserve(&self.state)
        s.standing = standing
        session_stand(&self.state, <uint32_t>session)

    def set_fit_deadline(self, int64_t session, int64_t deadline):
        cdef Session *s = self._session(session)
        check_time(deadline)
        reserve(&self.state)
        s.fit_deadline = deadline
        session_stand(&self.state, <uint32_t>session)

    def activate(self, int64_t session):
        cdef Device *d = device_at(&self.state, self._session(session).device)
        if d.active:
            raise ValueError(f"session {d.active} is active on the device")
        reserve(&self.state)
        d.active = <uint32_t>session
        session_stand(&self.state, <uint32_t>session)

    def deactivate(self, int64_t device):
        cdef Device *d = self._device(device)
        cdef uint32_t session = d.active
        if session:
            reserve(&self.state)
            d.active = 0
            session_stand(&self.state, session)

    def active_session(self, int64_t device):
        cdef Device *d = self._device(device)
        return d.active if d.active else -1

    def release_jobs(self, int64_t session):
        cdef uint32_t count = self._session(session).size
        queue_release(&self.state, <uint32_t>session)
        return count

    def drop_jobs(self, int64_t session):
        cdef uint32_t count = self._session(session).size
        cdef uint32_t *jobs = <uint32_t *>malloc((count + 1) * sizeof(uint32_t))
        cdef uint32_t i
        if jobs == NULL:
            raise MemoryError
        try:
            dropped = [0] * count
            queue_drop(&self.state, <uint32_t>session, jobs)
            for i in range(count):
                dropped[i] = jobs[i]
            return dropped
        finally:
            free(jobs)

    def session_size(self, int64_t session):
        return self._session(session).size

    # --- jobs ---

    def push(self, int64_t device, int64_t user, int64_t seq, int64_t priority, int64_t estimate):
        self._device(device)
        self._user(user)
        check_job(seq, priority, estimate)
        return queue_push(
            &self.state, <uint32_t>device, <uint32_t>user, <uint64_t>seq, <int>priority, estimate
        )

    def push_session(self, int64_t session, int64_t seq, int64_t priority, int64_t estimate, bint first=False):
        cdef Session *s = self._session(session)
        check_job(seq, priority, estimate)
        if first and s.size and not order_at(tree_first(&self.state, s.batch, s.root), 0) & NOT_FIRST:
            raise ValueError(f"the first job of session {session} is queued already")
        return queue_push_session(
            &self.state, <uint32_t>session, <uint64_t>seq, <int>priority, estimate, first
        )

    def push_calibration(self, int64_t device, int64_t seq):
        cdef Device *d = self._device(device)
        cdef uint32_t index
        check_job(seq, 0, 1)
        reserve(&self.state)
        index = job_take(&self.state, job_key(0, <uint64_t>seq), 0, CALIBRATION, <uint32_t>device)
        tree_insert(&self.state, False, &d.calibrations, 0.0, job_key(0, <uint64_t>seq), 0, index)
        d.calibration_count += 1
        self.state.queued += 1
        return index

    def remove(self, int64_t job):
        self._job(job)
        queue_remove(&self.state, <uint32_t>job)

    def set_priority(self, int64_t job, int64_t priority):
        cdef Job *j = self._job(job)
        check_job(0, priority, 1)
        if j.kind == CALIBRATION:
            raise ValueError(f"job {job} is a calibration, which has no priority")
        queue_set_priority(&self.state, <uint32_t>job, <int>priority)

    # --- dispatch (3) ---

    def pick(self, int64_t device, int64_t now):
        cdef Device *d = self._device(device)
        check_time(now)
        if d.busy:
            raise ValueError(f"device {device} runs a job")
        return queue_pick(&self.state, <uint32_t>device, now)

    def runner_up(self, int64_t job, int64_t now):
        cdef State *q = &self.state
        cdef Job *j = self._job(job)
        cdef uint32_t device, user, found, node, passed
        cdef Context c
        check_time(now)
        if j.kind == CALIBRATION:
            raise ValueError(f"job {job} is not what fair share picks now")
        if j.kind == SESSION:
            user = session_at(q, j.owner).user
            device = session_at(q, j.owner).device
        else:
            user = entry_node(q, j.owner)
            device = entry_at(q, j.owner).device
        reserve(q)
        expire(q, device, now)
        found = fair_pick(q, device, now, -1, &c)
        if found == 0 or candidate_job(q, found) != job:
            raise ValueError(f"job {job} is not what fair share picks now")
        found = fair_pick(q, device, now, user, &c)
        if found == 0:
            return None
        node = user
        user = entry_node(q, c.entry)
        passed = user
        while node_at(q, node).parent != node_at(q, passed).parent:
            if node_at(q, node).depth >= node_at(q, passed).depth:
                node = node_at(q, node).parent
            else:
                passed = node_at(q, passed).parent
        return (node, passed, user)

    def start(self, int64_t job, int64_t now):
        cdef Job *j = self._job(job)
        cdef uint32_t device
        check_time(now)
        if j.kind == FAIR_SHARE:
            device = entry_at(&self.state, j.owner).device
        elif j.kind == SESSION:
            device = session_at(&self.state, j.owner).device
        else:
            device = j.owner
        if device_at(&self.state, device).busy:
            raise ValueError(f"device {device} runs a job")
        queue_start(&self.state, <uint32_t>job, now)

    def double_estimate(self, int64_t device):
        cdef Device *d = self._device(device)
        if not d.busy:
            raise ValueError(f"device {device} runs nothing")
        if d.run_calibration:
            raise ValueError(f"device {device} runs a calibration, which has no estimate")
        if d.run_estimate > FOREVER // 2:
            raise ValueError("the estimate is too long to be doubled")
        queue_double(&self.state, <uint32_t>device)
        return d.run_estimate

    def finish(self, int64_t device, int64_t now):
        cdef Device *d = self._device(device)
        if not d.busy:
            raise ValueError(f"device {device} runs nothing")
        check_time(now)
        if now < d.run_start:
            raise ValueError(f"the run started at {d.run_start} ns and cannot end at {now} ns")
        queue_finish(&self.state, <uint32_t>device, now)

    def lose(self, int64_t device):
        if not self._device(device).busy:
            raise ValueError(f"device {device} runs nothing")
        queue_end(&self.state, <uint32_t>device, 0.0)

    # --- figures ---

    def __len__(self):
        return self.state.queued

    def counts(self, int64_t device):
        cdef Device *d = self._device(device)
        return (d.calibration_count, d.session_count, d.fair_share_count)

    def memory_bytes(self):
        cdef State *q = &self.state
        return sizeof(State) + (
            pool_bytes(&q.jobs) + pool_bytes(&q.nodes) + pool_bytes(&q.extras)
            + pool_bytes(&q.wide) + pool_bytes(&q.narrow) + pool_bytes(&q.sessions) + pool_bytes(&q.devices)
        )

    def renormalise(self, int64_t exponents):
        if exponents < 0:
            raise ValueError(f"exponents are not negative, not {exponents}")
        if exponents > FOREVER - self.state.exponent:
            raise ValueError("the exponent would be too large")
        reserve(&self.state)
        renormalise(&self.state, exponents)
