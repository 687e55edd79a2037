# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: auto_pickle=False, autotestdict=False, embedsignature=False
"""The compiled queue. Its surface is `_queue.pyi`, its layout and contract `_queue.pxd`, its meaning `reference.py`.

The law of this file; every function may rely on it and leaves it behind true:

1. A user has an entry on a device exactly while its tree of candidates there is not empty; an account exactly while
   one of its children has an entry there. The root's entry of a device stays.
2. The tree of candidates of a user holds its queued fair-share jobs and, for each standing session that is not active,
   a CANDIDATE for the job of it that would run, if any. A batch whose first job is queued has a SECOND, too, if its
   smallest other job is smaller: it counts only where less time is left than the first job takes. So a user has a
   candidate that takes no longer than `left` exactly if the least estimate of its tree is no more than `left`.
3. The tree of children of an account holds one slot an entry below it, ordered by (usage / shares, seq of the child's
   pick without restrictions), and each slot the least estimate of the child's candidates. Usage moves only in `price`,
   candidates only between `begin` and `lift`; both move the slots, up to the root.
4. As of `Device.clock`, CANDIDATEs of batches fit. `expire` makes that true for a later instant, through the tree of
   lapses: the first instants after which a batch's candidates change.
5. A node's Flight exists exactly while one of its runs does.
"""

from cpython.exc cimport PyErr_NoMemory
from libc.math cimport exp2, expm1, isfinite, ldexp, log
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport abort, calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

cdef extern from *:
    """
    #include <math.h>
    #include <stdint.h>
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

cdef enum:
    JOB_SHIFT = 12
    NODE_SHIFT = 12
    FLIGHT_SHIFT = 8
    ENTRY_SHIFT = 12
    BLOCK_SHIFT = 7
    SESSION_SHIFT = 8
    DEVICE_SHIFT = 4
    BLOCKS_KEPT = 40          # free blocks that a change of one device may need
    MERGE_BELOW = 5           # a block with fewer slots looks for a neighbour to merge with
    MERGED_MAX = 12           # slots in a merged block: room is left for the next ones
    EXPONENTS_MAX = 700       # see reference.py
    EXPONENTS_KEPT = 640
    CHARGE_HALF_LIVES_MAX = 900

cdef int64_t FOREVER = 0x7FFFFFFFFFFFFFFF
cdef uint64_t NOT_FIRST = <uint64_t>1 << 63
cdef uint64_t SEQ_MASK = (<uint64_t>1 << 48) - 1
cdef uint64_t SIGN = <uint64_t>1 << 63

NEVER = 2**63 - 1
ROOT = 0
NOTHING = -1
HELD = -2
BATCH_FITS_NOTHING = -3
BATCH_MAY_NOT_START = -4


# --- pools ------------------------------------------------------------------------------------------------------------

cdef void pool_init(Pool *p, uint32_t record_size, uint32_t shift, uint32_t used) noexcept nogil:
    memset(p, 0, sizeof(Pool))
    p.record_size = record_size
    p.shift = shift
    p.used = used


cdef void pool_free(Pool *p) noexcept nogil:
    cdef uint32_t i
    for i in range(p.chunk_count):
        free(p.chunks[i])
    free(p.chunks)
    p.chunks = NULL
    p.chunk_count = 0
    p.chunk_max = 0


cdef bint pool_grow(Pool *p) noexcept nogil:
    """Whether there was memory for another chunk."""
    cdef uint32_t chunk_max = p.chunk_max
    cdef char **chunks
    cdef char *chunk
    if p.chunk_count == chunk_max:
        chunk_max = 2 * chunk_max if chunk_max else 8
        chunks = <char **>realloc(p.chunks, chunk_max * sizeof(char *))
        if chunks == NULL:
            return False
        p.chunks = chunks
        p.chunk_max = chunk_max
    chunk = <char *>calloc(<size_t>1 << p.shift, p.record_size)
    if chunk == NULL:
        return False
    p.chunks[p.chunk_count] = chunk
    p.chunk_count += 1
    return True


cdef inline char *pool_at(Pool *p, uint32_t i) noexcept nogil:
    return p.chunks[i >> p.shift] + <size_t>(i & ((<uint32_t>1 << p.shift) - 1)) * p.record_size


cdef inline bint pool_has(Pool *p, uint64_t count) noexcept nogil:
    return p.free_count + (<uint64_t>p.chunk_count << p.shift) >= p.used + count


cdef int pool_reserve(Pool *p, uint64_t count) except -1 nogil:
    """Make sure that `count` records can be taken without a failure."""
    while not pool_has(p, count):
        if not pool_grow(p):
            with gil:
                PyErr_NoMemory()
    return 0


cdef inline uint32_t pool_take(Pool *p) noexcept nogil:
    """A zeroed record. Reserved before: it does not fail."""
    cdef uint32_t i = p.free_first
    cdef char *record
    if i:
        record = pool_at(p, i)
        p.free_first = (<uint32_t *>record)[0]
        p.free_count -= 1
    else:
        i = p.used
        if (i >> p.shift) >= p.chunk_count and not pool_grow(p):
            abort()  # beyond what `reserve` foresees and out of memory: nothing consistent is left to go on with
        p.used += 1
        record = pool_at(p, i)
    memset(record, 0, p.record_size)
    return i


cdef inline void pool_give(Pool *p, uint32_t i) noexcept nogil:
    (<uint32_t *>pool_at(p, i))[0] = p.free_first
    p.free_first = i
    p.free_count += 1


cdef uint64_t pool_bytes(Pool *p) noexcept nogil:
    return (<uint64_t>p.chunk_count << p.shift) * p.record_size + p.chunk_max * sizeof(char *)


cdef inline Job *job_at(State *q, uint32_t i) noexcept nogil:
    return <Job *>q.jobs.chunks[i >> JOB_SHIFT] + (i & ((1 << JOB_SHIFT) - 1))


cdef inline Node *node_at(State *q, uint32_t i) noexcept nogil:
    return <Node *>q.nodes.chunks[i >> NODE_SHIFT] + (i & ((1 << NODE_SHIFT) - 1))


cdef inline Flight *flight_at(State *q, uint32_t i) noexcept nogil:
    return <Flight *>q.flights.chunks[i >> FLIGHT_SHIFT] + (i & ((1 << FLIGHT_SHIFT) - 1))


cdef inline Entry *entry_at(State *q, uint32_t i) noexcept nogil:
    return <Entry *>q.entries.chunks[i >> ENTRY_SHIFT] + (i & ((1 << ENTRY_SHIFT) - 1))


cdef inline Block *block_at(State *q, uint32_t i) noexcept nogil:
    return <Block *>q.blocks.chunks[i >> BLOCK_SHIFT] + (i & ((1 << BLOCK_SHIFT) - 1))


cdef inline Session *session_at(State *q, uint32_t i) noexcept nogil:
    return <Session *>q.sessions.chunks[i >> SESSION_SHIFT] + (i & ((1 << SESSION_SHIFT) - 1))


cdef inline Device *device_at(State *q, uint32_t i) noexcept nogil:
    return <Device *>q.devices.chunks[i >> DEVICE_SHIFT] + (i & ((1 << DEVICE_SHIFT) - 1))


# --- trees of jobs ----------------------------------------------------------------------------------------------------
# Record 0 stands for an empty subtree: height 0, least FOREVER. Only its `parent` is ever written, by a rotation.

cdef inline bint comes_before(Job *x, Job *y, bint by_estimate) noexcept nogil:
    """`by_estimate`: the order of a batch, its first job first (5.3); else by key alone."""
    if by_estimate:
        if (x.key ^ y.key) & NOT_FIRST:
            return x.key < y.key
        if x.estimate != y.estimate:
            return x.estimate < y.estimate
    return x.key < y.key


cdef inline void tree_renew(State *q, Job *j) noexcept nogil:
    """Height and least from the children."""
    cdef Job *left = job_at(q, j.left)
    cdef Job *right = job_at(q, j.right)
    cdef int64_t least = j.estimate
    j.height = (left.height if left.height > right.height else right.height) + 1
    if left.least < least:
        least = left.least
    if right.least < least:
        least = right.least
    j.least = least


cdef inline void tree_replace(State *q, uint32_t *root, uint32_t parent, uint32_t old, uint32_t new) noexcept nogil:
    """Let `new` be the child of `parent` (0: the root) that `old` was."""
    cdef Job *p
    if parent == 0:
        root[0] = new
    else:
        p = job_at(q, parent)
        if p.left == old:
            p.left = new
        else:
            p.right = new
    job_at(q, new).parent = parent


cdef uint32_t tree_rotate_left(State *q, uint32_t *root, uint32_t i) noexcept nogil:
    cdef Job *j = job_at(q, i)
    cdef uint32_t top = j.right
    cdef Job *t = job_at(q, top)
    tree_replace(q, root, j.parent, i, top)
    j.right = t.left
    job_at(q, t.left).parent = i
    t.left = i
    j.parent = top
    tree_renew(q, j)
    tree_renew(q, t)
    return top


cdef uint32_t tree_rotate_right(State *q, uint32_t *root, uint32_t i) noexcept nogil:
    cdef Job *j = job_at(q, i)
    cdef uint32_t top = j.left
    cdef Job *t = job_at(q, top)
    tree_replace(q, root, j.parent, i, top)
    j.left = t.right
    job_at(q, t.right).parent = i
    t.right = i
    j.parent = top
    tree_renew(q, j)
    tree_renew(q, t)
    return top


cdef void tree_mend(State *q, uint32_t *root, uint32_t i) noexcept nogil:
    """Heights, balance and least estimates from i upwards, as far as they change."""
    cdef Job *j
    cdef uint8_t height
    cdef int64_t least
    cdef int lean
    while i:
        j = job_at(q, i)
        height = j.height
        least = j.least
        lean = <int>job_at(q, j.left).height - <int>job_at(q, j.right).height
        if lean > 1:
            if job_at(q, job_at(q, j.left).left).height < job_at(q, job_at(q, j.left).right).height:
                tree_rotate_left(q, root, j.left)
            i = tree_rotate_right(q, root, i)
            j = job_at(q, i)
        elif lean < -1:
            if job_at(q, job_at(q, j.right).right).height < job_at(q, job_at(q, j.right).left).height:
                tree_rotate_right(q, root, j.right)
            i = tree_rotate_left(q, root, i)
            j = job_at(q, i)
        else:
            tree_renew(q, j)
        if j.height == height and j.least == least:
            return
        i = j.parent


cdef void tree_insert(State *q, uint32_t *root, uint32_t i, bint by_estimate) noexcept nogil:
    cdef Job *new = job_at(q, i)
    cdef Job *j
    cdef uint32_t at = root[0]
    new.left = 0
    new.right = 0
    new.parent = 0
    new.height = 1
    new.least = new.estimate
    if at == 0:
        root[0] = i
        return
    while True:
        j = job_at(q, at)
        if comes_before(new, j, by_estimate):
            if j.left == 0:
                j.left = i
                break
            at = j.left
        else:
            if j.right == 0:
                j.right = i
                break
            at = j.right
    new.parent = at
    tree_mend(q, root, at)


cdef inline uint32_t tree_first(State *q, uint32_t i) noexcept nogil:
    cdef uint32_t left
    if i:
        left = job_at(q, i).left
        while left:
            i = left
            left = job_at(q, i).left
    return i


cdef uint32_t tree_next(State *q, uint32_t i) noexcept nogil:
    cdef Job *j = job_at(q, i)
    cdef uint32_t parent
    if j.right:
        return tree_first(q, j.right)
    parent = j.parent
    while parent and job_at(q, parent).right == i:
        i = parent
        parent = job_at(q, i).parent
    return parent


cdef void tree_remove(State *q, uint32_t *root, uint32_t i) noexcept nogil:
    cdef Job *j = job_at(q, i)
    cdef Job *s
    cdef uint32_t successor, lowest
    if j.left == 0 or j.right == 0:
        lowest = j.parent
        tree_replace(q, root, lowest, i, j.left if j.left else j.right)
        tree_mend(q, root, lowest)
        return
    successor = tree_first(q, j.right)
    s = job_at(q, successor)
    if s.parent == i:
        lowest = successor
    else:
        lowest = s.parent
        tree_replace(q, root, lowest, successor, s.right)
        s.right = j.right
        job_at(q, j.right).parent = successor
    s.left = j.left
    job_at(q, j.left).parent = successor
    s.height = j.height
    s.least = j.least
    tree_replace(q, root, j.parent, i, successor)
    tree_mend(q, root, lowest)
    if lowest != successor:
        tree_mend(q, root, successor)


cdef uint32_t tree_fit(State *q, uint32_t i, int64_t left) noexcept nogil:
    """The first candidate that takes no longer than `left`. A subtree without one is not entered; beyond that only
    SECONDs that do not count are passed: those of the user's batches whose first job stands further back, by priority.
    """
    cdef Job *j
    cdef uint32_t found
    while i:
        j = job_at(q, i)
        if j.least > left:
            return 0
        found = tree_fit(q, j.left, left) if j.left else 0
        if found:
            return found
        if j.estimate <= left and (j.kind != SECOND or left < session_at(q, j.owner).condition):
            return i
        i = j.right
    return 0


# --- trees of children ------------------------------------------------------------------------------------------------
# In an inner block the key of slot i > 0 is no more than any key below it and more than all keys below slot i - 1; the
# key of slot 0 is never read.

cdef struct Path:
    uint32_t block[BLOCK_LEVELS]
    int slot[BLOCK_LEVELS]
    int last                 # the leaf's level, counted from the root


cdef inline int block_find(Block *b, uint64_t usage, uint64_t seq) noexcept nogil:
    """How many of the block's keys are smaller."""
    cdef int i = 0
    cdef int count = b.count
    while i < count and (b.usage[i] < usage or (b.usage[i] == usage and b.seq[i] < seq)):
        i += 1
    return i


cdef inline int64_t block_least(Block *b) noexcept nogil:
    cdef int64_t least = FOREVER
    cdef int i
    for i in range(b.count):
        if b.estimate[i] < least:
            least = b.estimate[i]
    return least


cdef inline void children_seek(State *q, uint32_t root, uint64_t usage, uint64_t seq, Path *path) noexcept nogil:
    """The path to the leaf where the key is or belongs, and its slot there."""
    cdef int level = 0
    cdef int i
    cdef Block *b = block_at(q, root)
    while b.height:
        i = 1
        while i < b.count and (b.usage[i] < usage or (b.usage[i] == usage and b.seq[i] <= seq)):
            i += 1
        path.block[level] = root
        path.slot[level] = i - 1
        level += 1
        root = b.ref[i - 1]
        b = block_at(q, root)
    path.block[level] = root
    path.slot[level] = block_find(b, usage, seq)
    path.last = level


cdef inline void children_renew(State *q, Path *path, int level) noexcept nogil:
    """Least estimates above the block at `level`, as far as they change."""
    cdef int64_t least
    cdef Block *above
    while level:
        least = block_least(block_at(q, path.block[level]))
        level -= 1
        above = block_at(q, path.block[level])
        if above.estimate[path.slot[level]] == least:
            return
        above.estimate[path.slot[level]] = least


cdef inline void block_open(Block *b, int i) noexcept nogil:
    """Make room for a slot at i."""
    cdef size_t rest = b.count - i
    memmove(&b.usage[i + 1], &b.usage[i], rest * sizeof(uint64_t))
    memmove(&b.seq[i + 1], &b.seq[i], rest * sizeof(uint64_t))
    memmove(&b.estimate[i + 1], &b.estimate[i], rest * sizeof(int64_t))
    memmove(&b.ref[i + 1], &b.ref[i], rest * sizeof(uint32_t))
    b.count += 1


cdef inline void block_close(Block *b, int i) noexcept nogil:
    """Take slot i out."""
    cdef size_t rest = b.count - i - 1
    memmove(&b.usage[i], &b.usage[i + 1], rest * sizeof(uint64_t))
    memmove(&b.seq[i], &b.seq[i + 1], rest * sizeof(uint64_t))
    memmove(&b.estimate[i], &b.estimate[i + 1], rest * sizeof(int64_t))
    memmove(&b.ref[i], &b.ref[i + 1], rest * sizeof(uint32_t))
    b.count -= 1


cdef inline void block_copy(Block *to, int at, Block *source, int first, int count) noexcept nogil:
    memcpy(&to.usage[at], &source.usage[first], count * sizeof(uint64_t))
    memcpy(&to.seq[at], &source.seq[first], count * sizeof(uint64_t))
    memcpy(&to.estimate[at], &source.estimate[first], count * sizeof(int64_t))
    memcpy(&to.ref[at], &source.ref[first], count * sizeof(uint32_t))


cdef inline void block_set(Block *b, int i, uint64_t usage, uint64_t seq, int64_t estimate, uint32_t ref) noexcept nogil:
    b.usage[i] = usage
    b.seq[i] = seq
    b.estimate[i] = estimate
    b.ref[i] = ref


cdef void children_insert(
    State *q, uint32_t *root, uint64_t usage, uint64_t seq, int64_t estimate, uint32_t ref
) noexcept nogil:
    cdef Path path
    cdef Block *b
    cdef Block *right
    cdef uint32_t new
    cdef int level, i, kept
    cdef bint at_end
    if root[0] == 0:
        root[0] = pool_take(&q.blocks)
        b = block_at(q, root[0])
        block_set(b, 0, usage, seq, estimate, ref)
        b.count = 1
        return
    children_seek(q, root[0], usage, seq, &path)
    level = path.last
    i = path.slot[level]
    while True:
        b = block_at(q, path.block[level])
        if b.count < BLOCK_SLOTS:
            block_open(b, i)
            block_set(b, i, usage, seq, estimate, ref)
            if level:
                children_renew(q, &path, level)
            return
        # Full: the upper half moves to a new block at the right; at the right end of the tree, where children with
        # ever greater keys come in, only the new slot does, so that blocks stay full.
        new = pool_take(&q.blocks)
        right = block_at(q, new)
        right.height = b.height
        at_end = i == BLOCK_SLOTS
        for kept in range(level):
            if path.slot[kept] + 1 < block_at(q, path.block[kept]).count:
                at_end = False
        kept = BLOCK_SLOTS if at_end else BLOCK_SLOTS // 2
        block_copy(right, 0, b, kept, BLOCK_SLOTS - kept)
        right.count = BLOCK_SLOTS - kept
        b.count = kept
        if at_end or i > kept:
            block_open(right, i - kept)
            block_set(right, i - kept, usage, seq, estimate, ref)
        else:
            block_open(b, i)
            block_set(b, i, usage, seq, estimate, ref)
        # The new block is the next slot to insert, one level up.
        usage = right.usage[0]
        seq = right.seq[0]
        estimate = block_least(right)
        ref = new
        if level == 0:
            new = pool_take(&q.blocks)
            b = block_at(q, new)
            right = block_at(q, path.block[0])
            b.height = right.height + 1
            b.count = 2
            block_set(b, 0, right.usage[0], right.seq[0], block_least(right), path.block[0])
            block_set(b, 1, usage, seq, estimate, ref)
            root[0] = new
            return
        level -= 1
        block_at(q, path.block[level]).estimate[path.slot[level]] = block_least(b)
        i = path.slot[level] + 1


cdef void children_remove(State *q, uint32_t *root, Path *path) noexcept nogil:
    """Take out the slot at the end of the path."""
    cdef int level = path.last
    cdef int i = path.slot[level]
    cdef int other, at
    cdef uint32_t index
    cdef Block *b
    cdef Block *above
    cdef Block *left
    cdef Block *right
    while True:
        index = path.block[level]
        b = block_at(q, index)
        block_close(b, i)
        if level == 0:
            if b.count == 0:
                root[0] = 0
                pool_give(&q.blocks, index)
            elif b.count == 1 and b.height:
                root[0] = b.ref[0]
                pool_give(&q.blocks, index)
            return
        above = block_at(q, path.block[level - 1])
        at = path.slot[level - 1]
        if b.count == 0:
            pool_give(&q.blocks, index)
            i = at
            level -= 1
            continue
        if b.count < MERGE_BELOW and above.count > 1:
            other = at + 1 if at + 1 < above.count else at - 1
            if block_at(q, above.ref[other]).count + b.count <= MERGED_MAX:
                if other < at:
                    other, at = at, other
                left = block_at(q, above.ref[at])
                right = block_at(q, above.ref[other])
                # The key of an inner block's slot 0 is not kept: what stands above it is.
                right.usage[0] = above.usage[other] if right.height else right.usage[0]
                right.seq[0] = above.seq[other] if right.height else right.seq[0]
                block_copy(left, left.count, right, 0, right.count)
                left.count += right.count
                above.estimate[at] = block_least(left)
                pool_give(&q.blocks, above.ref[other])
                i = other
                level -= 1
                continue
        children_renew(q, path, level)
        return


cdef void children_move(
    State *q, uint32_t *root, uint64_t old_usage, uint64_t old_seq, uint64_t usage, uint64_t seq, int64_t estimate
) noexcept nogil:
    """Give the slot with the old key a new key and estimate."""
    cdef Path path
    cdef Block *b
    cdef int i, to
    cdef uint32_t ref
    children_seek(q, root[0], old_usage, old_seq, &path)
    b = block_at(q, path.block[path.last])
    i = path.slot[path.last]
    ref = b.ref[i]
    if usage == old_usage and seq == old_seq:
        b.estimate[i] = estimate
        children_renew(q, &path, path.last)
        return
    # Where the key lands between others of the same block (or the tree has but one), it moves within it.
    to = block_find(b, usage, seq)
    if (to > 0 and to < b.count) or path.last == 0:
        if to > i:
            to -= 1
            block_shift_down(b, i, to)
        elif to < i:
            block_shift_up(b, to, i)
        block_set(b, to, usage, seq, estimate, ref)
        children_renew(q, &path, path.last)
        return
    children_remove(q, root, &path)
    children_insert(q, root, usage, seq, estimate, ref)


cdef inline void block_shift_down(Block *b, int first, int last) noexcept nogil:
    """Slots first + 1 to last move one down."""
    cdef size_t count = last - first
    memmove(&b.usage[first], &b.usage[first + 1], count * sizeof(uint64_t))
    memmove(&b.seq[first], &b.seq[first + 1], count * sizeof(uint64_t))
    memmove(&b.estimate[first], &b.estimate[first + 1], count * sizeof(int64_t))
    memmove(&b.ref[first], &b.ref[first + 1], count * sizeof(uint32_t))


cdef inline void block_shift_up(Block *b, int first, int last) noexcept nogil:
    """Slots first to last - 1 move one up."""
    cdef size_t count = last - first
    memmove(&b.usage[first + 1], &b.usage[first], count * sizeof(uint64_t))
    memmove(&b.seq[first + 1], &b.seq[first], count * sizeof(uint64_t))
    memmove(&b.estimate[first + 1], &b.estimate[first], count * sizeof(int64_t))
    memmove(&b.ref[first + 1], &b.ref[first], count * sizeof(uint32_t))


cdef inline Block *children_first(State *q, uint32_t root) noexcept nogil:
    """The leaf whose slot 0 is the first of the tree."""
    cdef Block *b = block_at(q, root)
    while b.height:
        b = block_at(q, b.ref[0])
    return b


# --- usage ------------------------------------------------------------------------------------------------------------

cdef inline double usage_per_share(State *q, Node *n) noexcept nogil:
    if n.flight:
        return (n.settled + flight_at(q, n.flight).amount) / n.shares
    return (n.settled + 0.0) / n.shares


cdef inline uint64_t usage_key(State *q, Node *n) noexcept nogil:
    """usage_per_share as an integer of the same order. (In flight may be below zero by a rounding.)"""
    cdef double value = usage_per_share(q, n) + 0.0  # no -0.0: equal doubles have equal keys
    cdef uint64_t bits
    memcpy(&bits, &value, sizeof(bits))
    return ~bits if bits & SIGN else bits | SIGN


cdef int renormalise(State *q, int64_t exponents) noexcept nogil:
    cdef uint32_t i
    cdef int shift = <int>(exponents if exponents < 5000 else 5000)
    cdef Node *n
    cdef Flight *flight
    cdef Device *d
    for i in range(q.nodes.used):
        n = node_at(q, i)
        n.settled = ldexp(n.settled, -shift)
        if n.flight:
            flight = flight_at(q, n.flight)
            flight.amount = ldexp(flight.amount, -shift)
    for i in range(q.devices.used):
        d = device_at(q, i)
        d.run_charge = ldexp(d.run_charge, -shift)
    q.exponent += exponents
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
    cdef Block *b = block_at(q, index)
    cdef Entry *child
    cdef Node *n
    cdef int i
    for i in range(b.count):
        if b.height:
            rebuild_from(q, account, b.ref[i])
        else:
            child = entry_at(q, b.ref[i])
            n = node_at(q, child.node)
            if n.flags & FLAG_ACCOUNT:
                rebuild(q, b.ref[i])
            children_insert(
                q, &account.root, usage_key(q, n), entry_seq(q, child, n), entry_least(q, child, n), b.ref[i]
            )
    pool_give(&q.blocks, index)


cdef double charge_cost(State *q, int64_t start, int64_t duration) noexcept nogil:
    """The integral of g over [start, start + duration], times 2**-exponent (6). May move the exponent."""
    cdef int64_t last = <int64_t>((<uint64_t>start + <uint64_t>duration) // <uint64_t>q.half_life)
    cdef int64_t n, r
    if last - q.exponent > EXPONENTS_MAX:
        renormalise(q, last - q.exponent - EXPONENTS_KEPT)
    if duration // q.half_life >= CHARGE_HALF_LIVES_MAX:
        start += duration - CHARGE_HALF_LIVES_MAX * q.half_life
        duration = CHARGE_HALF_LIVES_MAX * q.half_life
    n = start // q.half_life
    r = start - n * q.half_life
    n -= q.exponent
    if n < -5000:
        n = -5000
    return ldexp(
        (q.k * exp2(cadenza_fraction(r, q.half_life))) * expm1((<double>duration / 1e9) / q.k), <int>n
    )


# --- entries ----------------------------------------------------------------------------------------------------------

cdef inline uint64_t entry_seq(State *q, Entry *e, Node *n) noexcept nogil:
    """seq of the pick without restrictions of an entry that has candidates."""
    if n.flags & FLAG_ACCOUNT:
        return children_first(q, e.root).seq[0]
    return job_at(q, e.first).key & SEQ_MASK


cdef inline int64_t entry_least(State *q, Entry *e, Node *n) noexcept nogil:
    if n.flags & FLAG_ACCOUNT:
        return block_least(block_at(q, e.root))
    return job_at(q, e.root).least


cdef inline uint32_t entry_device(State *q, uint32_t index) noexcept nogil:
    cdef Entry *e = entry_at(q, index)
    while e.up:
        e = entry_at(q, e.up)
    return e.first


cdef inline uint32_t entry_below(State *q, uint32_t node, uint32_t up) noexcept nogil:
    """The entry of a node under its parent's entry `up`, or 0."""
    cdef uint32_t index = node_at(q, node).entries
    cdef Entry *e
    while index:
        e = entry_at(q, index)
        if e.up == up:
            return index
        index = e.next
    return 0


cdef uint32_t entry_find(State *q, uint32_t device, uint32_t node) noexcept nogil:
    """The entry of a node on a device, or 0."""
    cdef uint32_t up
    if node == 0:
        return device_at(q, device).root_entry
    if q.devices.used == 1:
        return node_at(q, node).entries
    up = entry_find(q, device, node_at(q, node).parent)
    return entry_below(q, node, up) if up else 0


cdef uint32_t entry_ensure(State *q, uint32_t device, uint32_t node) noexcept nogil:
    """The entry of a node on a device, made if there is none (with those above). `lift` frees it if it stays empty."""
    cdef uint32_t up, index
    cdef Entry *e
    if node == 0:
        return device_at(q, device).root_entry
    if q.devices.used == 1 and node_at(q, node).entries:
        return node_at(q, node).entries
    up = entry_ensure(q, device, node_at(q, node).parent)
    index = entry_below(q, node, up)
    if index == 0:
        index = pool_take(&q.entries)
        e = entry_at(q, index)
        e.node = node
        e.up = up
        e.next = node_at(q, node).entries
        node_at(q, node).entries = index
    return index


cdef void entry_drop(State *q, uint32_t index) noexcept nogil:
    cdef Entry *e = entry_at(q, index)
    cdef uint32_t *link = &node_at(q, e.node).entries
    while link[0] != index:
        link = &entry_at(q, link[0]).next
    link[0] = e.next
    pool_give(&q.entries, index)


cdef struct Before:  # what the parent's tree holds about an entry
    bint present
    uint64_t seq
    int64_t least


cdef inline void begin(State *q, uint32_t index, Before *before) noexcept nogil:
    """Note what is about to change; `lift` ends it."""
    cdef Entry *e = entry_at(q, index)
    cdef Node *n
    before.present = e.root != 0
    if before.present:
        n = node_at(q, e.node)
        before.seq = entry_seq(q, e, n)
        before.least = entry_least(q, e, n)


cdef void lift(State *q, uint32_t index, Before *before, uint64_t *old_keys) noexcept nogil:
    """Bring the slots of an entry and of those above it up to date. `old_keys`: the usage keys, by depth, that the slots
    still have, or NULL where usage did not change. Frees entries without candidates."""
    cdef Entry *e = entry_at(q, index)
    cdef Entry *up
    cdef Node *n
    cdef uint32_t up_index
    cdef uint64_t key, old_key, seq = 0
    cdef int64_t least = 0
    cdef bint present
    cdef Before above
    while e.up:
        n = node_at(q, e.node)
        up_index = e.up
        up = entry_at(q, up_index)
        present = e.root != 0
        begin(q, up_index, &above)
        key = usage_key(q, n)
        old_key = old_keys[n.depth] if old_keys != NULL else key
        if present:
            seq = entry_seq(q, e, n)
            least = entry_least(q, e, n)
        if before.present and present:
            if key != old_key or seq != before.seq or least != before.least:
                children_move(q, &up.root, old_key, before.seq, key, seq, least)
            elif old_keys == NULL:
                return
        elif before.present:
            children_take_out(q, &up.root, old_key, before.seq)
        elif present:
            children_insert(q, &up.root, key, seq, least, index)
        if not present:
            entry_drop(q, index)
        before[0] = above
        index = up_index
        e = up


cdef void children_take_out(State *q, uint32_t *root, uint64_t usage, uint64_t seq) noexcept nogil:
    cdef Path path
    children_seek(q, root[0], usage, seq, &path)
    children_remove(q, root, &path)


cdef inline void keys_note(State *q, uint32_t user, uint64_t *keys) noexcept nogil:
    """The usage keys on the way up from a user, by depth."""
    cdef Node *n = node_at(q, user)
    while n.depth:
        keys[n.depth] = usage_key(q, n)
        n = node_at(q, n.parent)


cdef void price(State *q, uint32_t user, uint64_t *old_keys, uint32_t done) noexcept nogil:
    """Move the slots of a user and of the accounts above on every device, after their usage changed. `done`: an entry
    from which `lift` has been to the root already, or 0; its device is left out."""
    cdef uint32_t index, lower, top = 0, node = user, below = 0
    cdef Entry *e
    cdef Before before
    cdef bint passed
    if done:
        if q.devices.used == 1:
            return
        top = done
    while node:
        index = node_at(q, node).entries
        while index:
            e = entry_at(q, index)
            passed = entry_device(q, index) == top - 1 if top else False
            if below and not passed:
                lower = node_at(q, below).entries
                while lower and not passed:
                    passed = entry_at(q, lower).up == index
                    lower = entry_at(q, lower).next
            if not passed:
                begin(q, index, &before)
                lift(q, index, &before, old_keys)
            index = e.next
        below = node
        node = node_at(q, node).parent


# --- candidates -------------------------------------------------------------------------------------------------------

cdef inline bint job_disorders(State *q, Job *j) noexcept nogil:
    """Whether a later candidate of the same user may have a smaller seq because of this one."""
    if j.kind == FAIR_SHARE:
        return (j.key >> 48) != 100
    return session_at(q, j.owner).batch or (j.key >> 48) != 100


cdef inline void candidate_insert(State *q, Device *d, Entry *e, uint32_t index) noexcept nogil:
    cdef Job *j = job_at(q, index)
    tree_insert(q, &e.root, index, False)
    if j.kind != SECOND and (e.first == 0 or j.key < job_at(q, e.first).key):
        e.first = index
    d.disorder += job_disorders(q, j)


cdef inline void candidate_remove(State *q, Device *d, Entry *e, uint32_t index) noexcept nogil:
    if e.first == index:
        e.first = tree_next(q, index)
        while e.first and job_at(q, e.first).kind == SECOND:
            e.first = tree_next(q, e.first)
    tree_remove(q, &e.root, index)
    d.disorder -= job_disorders(q, job_at(q, index))


cdef inline int64_t time_left(int64_t deadline, int64_t now) noexcept nogil:
    return FOREVER if deadline == FOREVER else deadline - now


cdef void session_withdraw(State *q, Device *d, Entry *e, Session *s) noexcept nogil:
    if s.second_stands:
        candidate_remove(q, d, e, s.second)
        s.second_stands = False
    if s.candidate_stands:
        candidate_remove(q, d, e, s.candidate)
        s.candidate_stands = False
    if s.lapse_stands:
        tree_remove(q, &d.lapses, s.lapse)
        s.lapse_stands = False


cdef void session_stand(State *q, uint32_t session) noexcept nogil:
    """Let a session stand in its owner's queue as it has to, after whatever changed about it."""
    cdef Session *s = session_at(q, session)
    cdef Device *d = device_at(q, s.device)
    cdef bint wanted = s.standing and s.size and d.active != session
    cdef uint32_t candidate = 0, second = 0, entry
    cdef int64_t left = FOREVER
    cdef Job *j
    cdef Job *record
    cdef Before before
    if not wanted and not s.candidate_stands and not s.lapse_stands:
        return
    if wanted:
        candidate = tree_first(q, s.root)
        if s.batch:
            left = time_left(s.fit_deadline, d.clock)
            j = job_at(q, candidate)
            if not j.key & NOT_FIRST:
                second = tree_next(q, candidate)
            if j.estimate > left:
                candidate = second
                second = 0
                if candidate and job_at(q, candidate).estimate > left:
                    candidate = 0
            elif second and job_at(q, second).estimate >= j.estimate:
                second = 0
    entry = entry_ensure(q, s.device, s.user)
    begin(q, entry, &before)
    session_withdraw(q, d, entry_at(q, entry), s)
    if candidate:
        j = job_at(q, candidate)
        record = job_at(q, s.candidate)
        record.key = j.key & ~NOT_FIRST
        record.estimate = j.estimate
        s.candidate_job = candidate
        s.candidate_stands = True
        candidate_insert(q, d, entry_at(q, entry), s.candidate)
        if s.batch and s.fit_deadline != FOREVER:
            record = job_at(q, s.lapse)
            record.key = session
            record.estimate = s.fit_deadline - j.estimate
            s.lapse_stands = True
            tree_insert(q, &d.lapses, s.lapse, True)
        if second:
            s.condition = j.estimate
            j = job_at(q, second)
            record = job_at(q, s.second)
            record.key = j.key & ~NOT_FIRST
            record.estimate = j.estimate
            s.second_job = second
            s.second_stands = True
            candidate_insert(q, d, entry_at(q, entry), s.second)
    lift(q, entry, &before, NULL)


cdef int expire(State *q, uint32_t device, int64_t now) except -1 nogil:
    """Bring the candidates of batches to a later instant."""
    cdef Device *d = device_at(q, device)
    if now > d.clock:
        d.clock = now
    while d.lapses and job_at(q, d.lapses).least < d.clock:
        reserve(q)
        session_stand(q, job_at(q, tree_first(q, d.lapses)).owner)
    return 0


# --- dispatch ---------------------------------------------------------------------------------------------------------

cdef struct Context:
    uint32_t device
    int64_t holder   # its jobs are not restricted; or -1
    int64_t without  # this user has no candidate; or -1


cdef struct Best:
    uint32_t job
    uint64_t usage
    uint64_t seq


cdef inline bint is_below(State *q, uint32_t node, int64_t holder) noexcept nogil:
    """Whether `holder` is the node or above it."""
    while True:
        if node == holder:
            return True
        if node == 0:
            return False
        node = node_at(q, node).parent


cdef uint32_t entry_toward(State *q, uint32_t index, int64_t target) noexcept nogil:
    """The entry under an account's entry on the way to a node that is below the account, or 0."""
    cdef uint32_t account = entry_at(q, index).node
    cdef uint32_t node
    cdef uint8_t depth = node_at(q, account).depth
    if target < 0 or node_at(q, <uint32_t>target).depth <= depth:
        return 0
    node = <uint32_t>target
    while node_at(q, node).depth > depth + 1:
        node = node_at(q, node).parent
    return entry_below(q, node, index) if node_at(q, node).parent == account else 0


cdef uint32_t choose(State *q, uint32_t index, int64_t left, Context *c) noexcept nogil:
    """The pick below an entry among candidates that take no longer than `left` (holder's: all): a Job, or 0."""
    cdef Entry *e
    cdef Node *n
    cdef uint32_t exempt, thinned, found
    cdef uint64_t usage, seq
    cdef Best best
    cdef int i
    while True:
        e = entry_at(q, index)
        if e.root == 0 or e.node == c.without:
            return 0
        if e.node == c.holder:
            left = FOREVER
        n = node_at(q, e.node)
        if not n.flags & FLAG_ACCOUNT:
            return e.first if left == FOREVER else tree_fit(q, e.root, left)
        exempt = entry_toward(q, index, c.holder) if left != FOREVER else 0
        thinned = entry_toward(q, index, c.without) if c.without >= 0 else 0
        if left == FOREVER and thinned == 0:
            index = children_first(q, e.root).ref[0]
            continue
        # The children on the way to the holder and to the user to leave out have picks of their own kind.
        best.job = 0
        choose_child(q, e.root, left, exempt, thinned, &best, c)
        if exempt == thinned:
            thinned = 0
        for i in range(2):
            index = thinned if i else exempt
            found = choose(q, index, left, c) if index else 0
            if found:
                usage = usage_key(q, node_at(q, entry_at(q, index).node))
                seq = job_at(q, found).key & SEQ_MASK
                if best.job == 0 or usage < best.usage or (usage == best.usage and seq < best.seq):
                    best.job = found
                    best.usage = usage
                    best.seq = seq
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
    cdef Block *b = block_at(q, root)
    cdef uint32_t found
    cdef uint64_t seq
    cdef int i
    for i in range(b.count):
        if b.estimate[i] > left:
            continue
        if b.height:
            if best.job and i and b.usage[i] > best.usage:
                return True
            if choose_child(q, b.ref[i], left, exempt, thinned, best, c):
                return True
            continue
        if best.job:
            if b.usage[i] > best.usage:
                return True
            if b.seq[i] > best.seq and (left == FOREVER or device_at(q, c.device).disorder == 0):
                return True
        if b.ref[i] == exempt or b.ref[i] == thinned:
            continue
        found = choose(q, b.ref[i], left, c)
        if found:
            seq = job_at(q, found).key & SEQ_MASK
            if best.job == 0 or seq < best.seq:
                best.job = found
                best.usage = b.usage[i]
                best.seq = seq
            if left == FOREVER:
                return True
    return False


cdef uint32_t fair_pick(State *q, uint32_t device, int64_t now, int64_t without) noexcept nogil:
    """Rule 3: a record in a user's tree of candidates, or 0."""
    cdef Device *d = device_at(q, device)
    cdef Context c
    cdef uint32_t top = d.root_entry
    cdef int64_t left = time_left(d.next_start, now)
    c.device = device
    c.holder = d.next_holder
    c.without = without
    if d.inside >= 0:
        top = entry_find(q, device, <uint32_t>d.inside)
        if top == 0:
            return 0
    if left != FOREVER and c.holder >= 0 and is_below(q, entry_at(q, top).node, c.holder):
        left = FOREVER
    return choose(q, top, left, &c)


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
    first = tree_first(q, s.root)
    j = job_at(q, first)
    if not s.batch:
        return first if j.estimate <= left else -2
    fit = time_left(s.fit_deadline, now)
    if not j.key & NOT_FIRST:
        second = tree_next(q, first)
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


cdef int64_t queue_pick(State *q, uint32_t device, int64_t now) except? -9 nogil:
    cdef Device *d = device_at(q, device)
    cdef uint32_t found
    if now > d.clock:
        if d.lapses:
            expire(q, device, now)
        d.clock = now
    if d.calibrations and not (d.outside_dedicated and d.active and not session_at(q, d.active).batch):
        return tree_first(q, d.calibrations)
    if d.active:
        return session_pick(q, d, now)
    found = fair_pick(q, device, now, -1)
    return candidate_job(q, found) if found else -1


# --- changes ----------------------------------------------------------------------------------------------------------

cdef inline int reserve(State *q) except -1 nogil:
    """Memory for one change, so that nothing fails halfway."""
    cdef uint64_t blocks = <uint64_t>BLOCKS_KEPT * (q.devices.used + 1)
    if not pool_has(&q.jobs, 4):
        pool_reserve(&q.jobs, 4)
    if not pool_has(&q.entries, DEPTH_MAX):
        pool_reserve(&q.entries, DEPTH_MAX)
    if not pool_has(&q.blocks, blocks):
        pool_reserve(&q.blocks, blocks)
    if not pool_has(&q.flights, DEPTH_MAX):
        pool_reserve(&q.flights, DEPTH_MAX)
    return 0


cdef int queue_init(State *q, int64_t half_life) except -1 nogil:
    memset(q, 0, sizeof(State))
    pool_init(&q.jobs, sizeof(Job), JOB_SHIFT, 1)
    pool_init(&q.nodes, sizeof(Node), NODE_SHIFT, 0)
    pool_init(&q.flights, sizeof(Flight), FLIGHT_SHIFT, 1)
    pool_init(&q.entries, sizeof(Entry), ENTRY_SHIFT, 1)
    pool_init(&q.blocks, sizeof(Block), BLOCK_SHIFT, 1)
    pool_init(&q.sessions, sizeof(Session), SESSION_SHIFT, 1)
    pool_init(&q.devices, sizeof(Device), DEVICE_SHIFT, 0)
    q.half_life = half_life
    q.k = (<double>half_life / 1e9) / log(2.0)
    reserve(q)
    pool_reserve(&q.nodes, 1)
    pool_take(&q.nodes)
    node_at(q, 0).shares = 1.0
    node_at(q, 0).flags = FLAG_ACCOUNT
    job_at(q, 0).least = FOREVER
    return 0


cdef void queue_free(State *q) noexcept nogil:
    pool_free(&q.jobs)
    pool_free(&q.nodes)
    pool_free(&q.flights)
    pool_free(&q.entries)
    pool_free(&q.blocks)
    pool_free(&q.sessions)
    pool_free(&q.devices)


cdef inline uint32_t job_take(State *q, uint64_t key, int64_t estimate, uint8_t kind, uint32_t owner) noexcept nogil:
    cdef uint32_t index = pool_take(&q.jobs)
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
    return (<uint64_t>(100 - priority) << 48) | seq


cdef int64_t queue_push(
    State *q, uint32_t device, uint32_t user, uint64_t seq, int priority, int64_t estimate
) except -1 nogil:
    cdef Device *d
    cdef uint32_t entry, index
    cdef Before before
    reserve(q)
    d = device_at(q, device)
    node_at(q, user).flags |= FLAG_USER
    entry = entry_ensure(q, device, user)
    begin(q, entry, &before)
    index = job_take(q, job_key(priority, seq), estimate, FAIR_SHARE, entry)
    candidate_insert(q, d, entry_at(q, entry), index)
    lift(q, entry, &before, NULL)
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
    tree_insert(q, &s.root, index, s.batch)
    s.size += 1
    device_at(q, s.device).session_count += 1
    q.queued += 1
    session_stand(q, session)
    return index


cdef void session_job_remove(State *q, uint32_t index) noexcept nogil:
    """Off the session's tree; what stands for the session is not yet brought up to date."""
    cdef Session *s = session_at(q, job_at(q, index).owner)
    tree_remove(q, &s.root, index)
    s.size -= 1
    device_at(q, s.device).session_count -= 1


cdef int queue_remove(State *q, uint32_t job) except -1 nogil:
    cdef Job *j
    cdef Device *d
    cdef uint32_t owner
    cdef Before before
    reserve(q)
    j = job_at(q, job)
    owner = j.owner
    if j.kind == FAIR_SHARE:
        d = device_at(q, entry_device(q, owner))
        begin(q, owner, &before)
        candidate_remove(q, d, entry_at(q, owner), job)
        lift(q, owner, &before, NULL)
        d.fair_share_count -= 1
    elif j.kind == SESSION:
        session_job_remove(q, job)
        session_stand(q, owner)
    else:
        d = device_at(q, owner)
        tree_remove(q, &d.calibrations, job)
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
    key = (j.key & (NOT_FIRST | SEQ_MASK)) | (<uint64_t>(100 - priority) << 48)
    if key == j.key:
        return 0
    if j.kind == FAIR_SHARE:
        d = device_at(q, entry_device(q, owner))
        begin(q, owner, &before)
        candidate_remove(q, d, entry_at(q, owner), job)
        j.key = key
        candidate_insert(q, d, entry_at(q, owner), job)
        lift(q, owner, &before, NULL)
    else:
        s = session_at(q, owner)
        tree_remove(q, &s.root, job)
        j.key = key
        tree_insert(q, &s.root, job, s.batch)
        session_stand(q, owner)
    return 0


cdef int queue_start(State *q, uint32_t job, int64_t now) except -1 nogil:
    cdef uint64_t old_keys[DEPTH_MAX]
    cdef Job *j
    cdef Device *d
    cdef Node *n
    cdef Flight *flight
    cdef Before before
    cdef uint32_t user, device, owner, entry = 0, done = 0
    cdef int64_t estimate
    cdef uint8_t kind
    cdef double charge
    reserve(q)
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
    charge = charge_cost(q, now, estimate)
    if kind == FAIR_SHARE:
        entry = owner
        user = entry_at(q, entry).node
        device = entry_device(q, entry)
        d = device_at(q, device)
        d.fair_share_count -= 1
    else:
        user = session_at(q, owner).user
        device = session_at(q, owner).device
        d = device_at(q, device)
        session_job_remove(q, job)
        session_stand(q, owner)
    keys_note(q, user, old_keys)
    d.busy = True
    d.run_calibration = False
    d.run_user = user
    d.run_start = now
    d.run_estimate = estimate
    d.run_charge = charge
    n = node_at(q, user)
    while True:
        if n.flight == 0:
            n.flight = pool_take(&q.flights)
        flight = flight_at(q, n.flight)
        flight.amount += charge
        flight.runs += 1
        if n.depth == 0:
            break
        n = node_at(q, n.parent)
    if kind == FAIR_SHARE:
        begin(q, entry, &before)
        candidate_remove(q, d, entry_at(q, entry), job)
        lift(q, entry, &before, old_keys)
        done = device + 1
    job_give(q, job)
    q.queued -= 1
    price(q, user, old_keys, done)
    return 0


cdef int queue_end(State *q, uint32_t device, double cost) except -1 nogil:
    """The run's in-flight charge goes; `cost` is settled."""
    cdef uint64_t old_keys[DEPTH_MAX]
    cdef Device *d
    cdef Node *n
    cdef Flight *flight
    reserve(q)
    d = device_at(q, device)
    d.busy = False
    if d.run_calibration:
        return 0
    keys_note(q, d.run_user, old_keys)
    n = node_at(q, d.run_user)
    while True:
        flight = flight_at(q, n.flight)
        flight.runs -= 1
        if flight.runs:
            flight.amount -= d.run_charge
        else:
            pool_give(&q.flights, n.flight)
            n.flight = 0
        n.settled += cost
        if n.depth == 0:
            break
        n = node_at(q, n.parent)
    d.run_charge = 0.0
    price(q, d.run_user, old_keys, 0)
    return 0


cdef int queue_finish(State *q, uint32_t device, int64_t now) except -1 nogil:
    cdef Device *d = device_at(q, device)
    cdef double cost = 0.0
    reserve(q)
    if not d.run_calibration and now != d.run_start:
        cost = charge_cost(q, d.run_start, now - d.run_start)
    return queue_end(q, device, cost)


cdef int queue_charge(State *q, uint32_t user, int64_t start, int64_t duration) except -1 nogil:
    cdef uint64_t old_keys[DEPTH_MAX]
    cdef double cost
    cdef Node *n
    reserve(q)
    cost = charge_cost(q, start, duration)
    keys_note(q, user, old_keys)
    n = node_at(q, user)
    n.flags |= FLAG_USER
    while True:
        n.settled += cost
        if n.depth == 0:
            break
        n = node_at(q, n.parent)
    price(q, user, old_keys, 0)
    return 0


cdef int queue_double(State *q, uint32_t device) except -1 nogil:
    cdef uint64_t old_keys[DEPTH_MAX]
    cdef Device *d
    cdef Node *n
    cdef double charge, change
    reserve(q)
    d = device_at(q, device)
    charge = charge_cost(q, d.run_start, 2 * d.run_estimate)
    d.run_estimate *= 2
    change = charge - d.run_charge
    d.run_charge = charge
    keys_note(q, d.run_user, old_keys)
    n = node_at(q, d.run_user)
    while True:
        flight_at(q, n.flight).amount += change
        if n.depth == 0:
            break
        n = node_at(q, n.parent)
    price(q, d.run_user, old_keys, 0)
    return 0


cdef int queue_set_node(State *q, uint32_t node, double settled, double shares) except -1 nogil:
    """Usage and shares of one node alone."""
    cdef uint64_t old_keys[DEPTH_MAX]
    cdef Node *n
    reserve(q)
    keys_note(q, node, old_keys)
    n = node_at(q, node)
    n.settled = settled
    n.shares = shares
    price(q, node, old_keys, 0)
    return 0


cdef int queue_release(State *q, uint32_t session) except -1 nogil:
    cdef Session *s
    cdef Device *d
    cdef Job *j
    cdef uint32_t entry, index, following, size
    cdef uint32_t *jobs
    cdef uint32_t count = 0
    cdef Before before
    reserve(q)
    s = session_at(q, session)
    if s.size == 0:
        return 0
    jobs = <uint32_t *>malloc(s.size * sizeof(uint32_t))
    if jobs == NULL:
        with gil:
            PyErr_NoMemory()
    index = tree_first(q, s.root)
    while index:
        jobs[count] = index
        count += 1
        index = tree_next(q, index)
    d = device_at(q, s.device)
    entry = entry_ensure(q, s.device, s.user)
    begin(q, entry, &before)
    session_withdraw(q, d, entry_at(q, entry), s)
    for index in range(count):
        j = job_at(q, jobs[index])
        j.key &= ~NOT_FIRST
        j.kind = FAIR_SHARE
        j.owner = entry
        candidate_insert(q, d, entry_at(q, entry), jobs[index])
    lift(q, entry, &before, NULL)
    free(jobs)
    s.root = 0
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
    index = tree_first(q, s.root)
    while index:
        jobs[count] = index
        count += 1
        index = tree_next(q, index)
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
    if not 0 <= seq <= <int64_t>SEQ_MASK:
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
        index = pool_take(&self.state.nodes)
        above.flags |= FLAG_ACCOUNT
        n = node_at(&self.state, index)
        n.parent = <uint32_t>parent
        n.depth = above.depth + 1
        n.shares = shares
        return index

    def set_shares(self, int64_t node, double shares):
        cdef Node *n = self._node(node)
        check_shares(shares)
        queue_set_node(&self.state, <uint32_t>node, n.settled, shares)

    def shares(self, int64_t node):
        return self._node(node).shares

    def usage(self, int64_t node, int64_t now):
        cdef Node *n = self._node(node)
        cdef double g, in_flight = 0.0
        cdef int64_t back
        check_time(now)
        g = exp2(cadenza_fraction(now % self.state.half_life, self.state.half_life))
        back = self.state.exponent - now // self.state.half_life
        back = 5000 if back > 5000 else (-5000 if back < -5000 else back)
        if n.flight:
            in_flight = flight_at(&self.state, n.flight).amount
        return (ldexp(n.settled / g, <int>back), ldexp(in_flight / g, <int>back))

    def raw_usage(self, int64_t node):
        cdef Node *n = self._node(node)
        cdef double in_flight = 0.0
        if n.flight:
            in_flight = flight_at(&self.state, n.flight).amount
        return (n.settled, in_flight, self.state.exponent)

    def restore_usage(self, int64_t node, double settled, int64_t exponent):
        cdef Node *n = self._node(node)
        cdef int64_t back
        if not (settled >= 0 and isfinite(settled)):
            raise ValueError(f"settled usage is not negative and finite, not {settled}")
        if exponent < 0:
            raise ValueError(f"an exponent is not negative, not {exponent}")
        if exponent > self.state.exponent:
            renormalise(&self.state, exponent - self.state.exponent)
        back = exponent - self.state.exponent
        queue_set_node(
            &self.state, <uint32_t>node, ldexp(settled, <int>(back if back > -5000 else -5000)), n.shares
        )

    def normalised_usage(self, int64_t node):
        return usage_per_share(&self.state, self._node(node))

    def charge(self, int64_t user, int64_t start, int64_t duration):
        self._user(user)
        check_time(start)
        check_length(duration)
        queue_charge(&self.state, <uint32_t>user, start, duration)

    # --- devices ---

    def add_device(self, bint calibration_outside_dedicated=False):
        cdef uint32_t index
        cdef Device *d
        cdef Entry *e
        reserve(&self.state)
        pool_reserve(&self.state.devices, 1)
        index = pool_take(&self.state.devices)
        d = device_at(&self.state, index)
        d.next_start = FOREVER
        d.inside = -1
        d.next_holder = -1
        d.outside_dedicated = calibration_outside_dedicated
        d.root_entry = pool_take(&self.state.entries)
        e = entry_at(&self.state, d.root_entry)
        e.first = index
        e.next = node_at(&self.state, 0).entries
        node_at(&self.state, 0).entries = d.root_entry
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
        s.lapse = job_take(&self.state, 0, 0, LAPSE, index)
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
        job_give(&self.state, s.lapse)
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
        if first and s.size and not job_at(&self.state, tree_first(&self.state, s.root)).key & NOT_FIRST:
            raise ValueError(f"the first job of session {session} is queued already")
        return queue_push_session(
            &self.state, <uint32_t>session, <uint64_t>seq, <int>priority, estimate, first
        )

    def push_calibration(self, int64_t device, int64_t seq):
        cdef Device *d = self._device(device)
        cdef uint32_t index
        check_job(seq, 0, 1)
        reserve(&self.state)
        index = job_take(&self.state, <uint64_t>seq, 0, CALIBRATION, <uint32_t>device)
        tree_insert(&self.state, &d.calibrations, index, False)
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
        check_time(now)
        if j.kind == CALIBRATION:
            raise ValueError(f"job {job} is not what fair share picks now")
        if j.kind == SESSION:
            user = session_at(q, j.owner).user
            device = session_at(q, j.owner).device
        else:
            user = entry_at(q, j.owner).node
            device = entry_device(q, j.owner)
        expire(q, device, now)
        found = fair_pick(q, device, now, -1)
        if found == 0 or candidate_job(q, found) != job:
            raise ValueError(f"job {job} is not what fair share picks now")
        found = fair_pick(q, device, now, user)
        if found == 0:
            return None
        j = job_at(q, found)
        node = user
        passed = entry_at(q, j.owner).node if j.kind == FAIR_SHARE else session_at(q, j.owner).user
        user = passed
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
            device = entry_device(&self.state, j.owner)
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
            pool_bytes(&q.jobs) + pool_bytes(&q.nodes) + pool_bytes(&q.flights) + pool_bytes(&q.entries)
            + pool_bytes(&q.blocks) + pool_bytes(&q.sessions) + pool_bytes(&q.devices)
        )

    def renormalise(self, int64_t exponents):
        if exponents < 0:
            raise ValueError(f"exponents are not negative, not {exponents}")
        if exponents > FOREVER - self.state.exponent:
            raise ValueError("the exponent would be too large")
        reserve(&self.state)
        renormalise(&self.state, exponents)
