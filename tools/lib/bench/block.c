/* The guest of `tools/bench block`: jobs on /dev/vda with O_DIRECT, which overwrite it. Depth 1 is pread and pwrite;
 * depth 32 is Linux' asynchronous I/O, by its system calls. */
#include "guest.h"
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

enum { DEPTH = 32, LARGE = 1 << 20, SMALL = 4096 };

struct job {
    const char *name;
    int write, size, depth, ops;
};

static int fd = -1;
static uint64_t disk, cursor, seed = 88172645463325252u;
static char *buffers[DEPTH];

/* Large ones in order, small ones anywhere. */
static uint64_t next(const struct job *job)
{
    if (job->size == LARGE) {
        uint64_t at = cursor;
        cursor = at + 2 * LARGE <= disk ? at + LARGE : 0;
        return at;
    }
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % (disk / SMALL) * SMALL;
}

static void one_by_one(const struct job *job, int ops)
{
    while (ops--) {
        uint64_t at = next(job);
        ssize_t moved = job->write ? pwrite(fd, buffers[0], job->size, at) : pread(fd, buffers[0], job->size, at);
        if (moved != job->size)
            end(job->name);
    }
}

static void submit(aio_context_t aio, const struct job *job, struct iocb *blocks, int count)
{
    struct iocb *list[DEPTH];
    for (int i = 0; i < count; i++)
        list[i] = &blocks[i];
    for (int sent = 0; sent < count;) {
        int more = syscall(SYS_io_submit, aio, count - sent, list + sent);
        if (more <= 0)
            end(job->name);
        sent += more;
    }
}

static void at_depth(const struct job *job, int ops)
{
    static aio_context_t aio;
    struct io_event events[DEPTH];
    struct iocb blocks[DEPTH];
    if (!aio && syscall(SYS_io_setup, DEPTH, &aio))
        end("io_setup");
    int flying = 0, done = DEPTH;
    for (int i = 0; i < DEPTH; i++)
        events[i].data = i;
    while (ops || flying) {
        int count = 0;
        for (int i = 0; i < done && ops; i++, ops--, count++) {
            struct iocb block = {.aio_lio_opcode = job->write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD, .aio_fildes = fd};
            block.aio_data = events[i].data;
            block.aio_buf = (uintptr_t)buffers[events[i].data];
            block.aio_nbytes = job->size;
            block.aio_offset = next(job);
            blocks[count] = block;
        }
        submit(aio, job, blocks, count);
        flying += count;
        done = syscall(SYS_io_getevents, aio, 1, DEPTH, events, NULL);
        for (int i = 0; i < done; i++)
            if (events[i].res != job->size)
                end(job->name);
        flying -= done;
        if (done <= 0)
            end("io_getevents");
    }
}

static void run(const struct job *job)
{
    void (*way)(const struct job *, int) = job->depth == 1 ? one_by_one : at_depth;
    way(job, job->ops / 8);
    start(job->name);
    way(job, job->ops);
    done(job->name, job->ops, (uint64_t)job->ops * job->size);
}

int main(void)
{
    static const struct job jobs[] = {
        {"read-1m-1", 0, LARGE, 1, 64},      {"read-4k-1", 0, SMALL, 1, 1000},
        {"write-1m-1", 1, LARGE, 1, 64},     {"write-4k-1", 1, SMALL, 1, 1000},
        {"read-1m-32", 0, LARGE, 32, 128},   {"read-4k-32", 0, SMALL, 32, 4000},
        {"write-1m-32", 1, LARGE, 32, 128},  {"write-4k-32", 1, SMALL, 32, 4000},
    };
    begin();
    for (int i = 0; i < 500 && fd < 0; i++) {
        fd = open("/dev/vda", O_RDWR | O_DIRECT);
        if (fd < 0)
            usleep(10000);
    }
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &disk) || disk < 4 * LARGE)
        end("/dev/vda");
    for (int i = 0; i < DEPTH; i++) {
        buffers[i] = aligned_alloc(4096, LARGE);
        memset(buffers[i], i + 1, LARGE);
    }
    for (unsigned i = 0; i < sizeof jobs / sizeof *jobs; i++)
        run(&jobs[i]);
    end(NULL);
}
