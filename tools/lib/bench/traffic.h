/* The jobs of `tools/bench net` and `vsock`: the guest's side. */
#include "guest.h"
#include "stream.h"
#include <sys/wait.h>

enum { STREAMS = 4, PINGS = 1000 };

/* One job over `streams` connections at once, each in a process of its own, with what `fds` holds. */
static void job_over(const char *name, char job, const int *fds, int streams, uint64_t bytes)
{
    for (int i = 0; i < streams; i++)
        if (ask(fds[i], job, bytes / streams / 8 / PING * PING))
            end(name);
    start(name);
    for (int i = 1; i < streams; i++)
        if (fork() == 0)
            _exit(ask(fds[i], job, bytes / streams) != 0);
    int bad = ask(fds[0], job, bytes / streams);
    for (int i = 1, status; i < streams; i++)
        bad |= wait(&status) < 0 || status;
    if (bad)
        end(name);
    done(name, job == ECHO ? bytes / PING : 1, bytes);
}
