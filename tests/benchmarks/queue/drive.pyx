# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# distutils: language = c++
"""Drives the compiled queue from C, and std::priority_queue beside it. Built by `run.py` in a temporary folder."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from _fastqueue._queue cimport (
    Device, Queue, State, queue_finish, queue_pick, queue_push, queue_remove, queue_start
)

cdef extern from *:
    """
    #include <cstdint>
    #include <queue>
    #include <random>
    #include <time.h>
    #include <utility>
    #include <vector>
    /* Of this thread on a processor: what else runs on the machine takes no part. */
    static double seconds() {
        timespec t;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return t.tv_sec + t.tv_nsec * 1e-9;
    }
    struct Standard {
        typedef std::pair<uint64_t, uint64_t> Pair;
        std::priority_queue<Pair, std::vector<Pair>, std::greater<Pair>> queue;
        std::mt19937_64 random{1};
        uint64_t seq = 0;
        void fill(uint64_t size) { while (queue.size() < size) queue.push({random() >> 16, seq++}); }
        /* As a queue by usage does: what comes off goes back in further on, somewhere among the others. */
        double cycle(int64_t count) {
            std::vector<uint64_t> steps(count);
            for (auto &step : steps) step = random() >> 16;
            double began = seconds();
            for (int64_t i = 0; i < count; i++) {
                Pair top = queue.top();
                queue.pop();
                queue.push({top.first + steps[i], seq++});
            }
            return seconds() - began;
        }
    };
    """
    double seconds() noexcept nogil
    cdef cppclass Standard:
        void fill(uint64_t size) nogil
        double cycle(int64_t count) nogil


cdef class StandardQueue:
    """std::priority_queue of 16-byte pairs."""

    cdef Standard *queue

    def __cinit__(self, uint64_t size):
        self.queue = new Standard()
        self.queue.fill(size)

    def __dealloc__(self):
        del self.queue

    def cycle(self, int64_t count):
        """Seconds for `count` times pop and push."""
        return self.queue.cycle(count)


def cycle(
    Queue queue, int64_t now, uint64_t seq, int64_t[::1] estimates, int64_t[::1] lengths, uint32_t[::1] users,
    int64_t window
):
    """(seconds, now after it) for pick, start, finish and push of each length on device 0.

    `users`: who submits next, 2**32 - 1 for the user whose job has just ended.
    `window`: -1 for none; else the time left before a window at each pick. A pick that finds nothing is followed by one
    without the window.
    """
    cdef State *q = &queue.state
    cdef Device *device = <Device *>q.devices.base
    cdef int64_t i, job
    cdef int64_t nothing = 0
    cdef uint32_t user
    cdef double took
    with nogil:
        took = seconds()
        for i in range(lengths.shape[0]):
            if window >= 0:
                device.next_start = now + window
            job = queue_pick(q, 0, now)
            if job < 0:
                nothing += 1
                device.next_start = 0x7FFFFFFFFFFFFFFF
                job = queue_pick(q, 0, now)
            queue_start(q, <uint32_t>job, now)
            user = device.run_user
            now += lengths[i]
            queue_finish(q, 0, now)
            if users[i] != <uint32_t>0xFFFFFFFF:
                user = users[i]
            queue_push(q, 0, user, seq, 0, estimates[i])
            seq += 1
        took = seconds() - took
        device.next_start = 0x7FFFFFFFFFFFFFFF
    return took, now, nothing


def picks(Queue queue, int64_t now, int64_t count):
    """Seconds for `count` picks of the same job."""
    cdef int64_t i
    cdef int64_t job = 0
    cdef double took = seconds()
    for i in range(count):
        job += queue_pick(&queue.state, 0, now)
    return seconds() - took


def runs(Queue queue, int64_t now, int64_t count):
    """(seconds, now after it) for `count` times pick, start and finish: a job that leaves the queue by running."""
    cdef State *q = &queue.state
    cdef double took = seconds()
    cdef int64_t i
    for i in range(count):
        queue_start(q, <uint32_t>queue_pick(q, 0, now), now)
        now += 1000000000
        queue_finish(q, 0, now)
    return seconds() - took, now


def cancels(Queue queue, uint32_t[::1] jobs):
    """Seconds to cancel the jobs."""
    cdef double took = seconds()
    cdef int64_t i
    for i in range(jobs.shape[0]):
        queue_remove(&queue.state, jobs[i])
    return seconds() - took
