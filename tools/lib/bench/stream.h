/* Traffic over a stream socket, both halves: the guest asks for jobs, tools/lib/bench/peer.c serves them.
 *
 * A job is a request of 16 bytes, then its data: all of fixed length, so that none depends on how a side hangs up. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHUNK = 64 << 10, PING = 64 };
/* To the peer, answered by one byte when all is there; from the peer; messages of PING bytes that come back. */
enum { SEND = 's', RECEIVE = 'r', ECHO = 'e' };

struct request {
    uint64_t job, bytes;
};

static char chunk[CHUNK];

static int put(int fd, uint64_t bytes)
{
    while (bytes) {
        ssize_t sent = send(fd, chunk, bytes < CHUNK ? bytes : CHUNK, MSG_NOSIGNAL);
        if (sent <= 0)
            return -1;
        bytes -= sent;
    }
    return 0;
}

static int take(int fd, uint64_t bytes)
{
    while (bytes) {
        ssize_t got = recv(fd, chunk, bytes < CHUNK ? bytes : CHUNK, 0);
        if (got <= 0)
            return -1;
        bytes -= got;
    }
    return 0;
}

static int put_request(int fd, struct request request)
{
    return send(fd, &request, sizeof request, MSG_NOSIGNAL) == sizeof request ? 0 : -1;
}

/* The asking half of a job. */
static inline int ask(int fd, char job, uint64_t bytes)
{
    if (put_request(fd, (struct request){job, bytes}))
        return -1;
    switch (job) {
    case SEND:
        return put(fd, bytes) || take(fd, 1) ? -1 : 0;
    case RECEIVE:
        return take(fd, bytes);
    }
    for (; bytes; bytes -= PING)
        if (put(fd, PING) || take(fd, PING))
            return -1;
    return 0;
}

/* The other half; it returns when the asking side has hung up. */
static inline void serve(int fd)
{
    struct request request;
    int bad = 0;
    while (!bad && recv(fd, &request, sizeof request, MSG_WAITALL) == sizeof request) {
        switch (request.job) {
        case SEND:
            bad = take(fd, request.bytes) || put(fd, 1);
            break;
        case RECEIVE:
            bad = put(fd, request.bytes);
            break;
        default:
            for (; request.bytes && !bad; request.bytes -= PING)
                bad = take(fd, PING) || put(fd, PING);
        }
    }
    close(fd);
}
