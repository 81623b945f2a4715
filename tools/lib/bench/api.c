/* The clock of `tools/bench api`: starts a monitor, meets its API, sends it requests, waits for its guest.
 *
 *   api SOCKET REQUESTS MARKER COMMAND [ARGUMENT]...
 *
 * REQUESTS is a file of HTTP requests, each after a line `NAME LENGTH`; all go over one connection. Then MARKER is waited
 * for in what the monitor prints, unless it is empty. On the standard output come lines `WHAT nanoseconds`: `answer`, from
 * exec until the answer to a GET; one per request, from its sending until its answer; `marker`, from the sending of the
 * first request. A refusal, and an end before the marker, end this with status 1 and what was said.
 *
 * In C, as the lab's clock may count instructions of one CPU, and those of an interpreter are many. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 64, ROOM = 1 << 16, LIMIT = 120 };

static struct {
    char name[64];
    char *text;
    size_t len;
    uint64_t took;
} requests[MOST];
static int count;
static pid_t monitor;
static char said[ROOM];
static size_t said_len;

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void fail(const char *why, const char *more)
{
    fprintf(stderr, "api: %s %s (%s)\n%.*s\n", why, more, strerror(errno), (int)said_len, said);
    if (monitor > 0)
        kill(monitor, SIGKILL);
    exit(1);
}

static void late(int signal)
{
    (void)signal;
    if (monitor > 0)
        kill(monitor, SIGKILL);
    _exit(1);
}

static void read_requests(const char *path)
{
    FILE *file = fopen(path, "r");
    if (!file)
        fail("open", path);
    while (count < MOST && fscanf(file, "%63s %zu", requests[count].name, &requests[count].len) == 2) {
        requests[count].text = malloc(requests[count].len);
        if (fgetc(file) != '\n' || fread(requests[count].text, 1, requests[count].len, file) != requests[count].len)
            fail("read", path);
        count++;
    }
    fclose(file);
}

/* The socket's name is waited for, not looked for again and again: on one CPU that would take the monitor's time. */
static int watch(const char *path)
{
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", path);
    int fd = inotify_init1(IN_CLOEXEC);
    if (fd < 0 || inotify_add_watch(fd, dirname(copy), IN_CREATE) < 0)
        fail("watch", copy);
    return fd;
}

static int meet(const char *path, int news)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof at.sun_path, "%s", path);
    char event[4096];
    while (access(path, F_OK))
        if (read(news, event, sizeof event) < 0)
            fail("wait for", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* The name is there a moment before somebody listens. */
    while (connect(fd, (struct sockaddr *)&at, sizeof at)) {
        if (errno != ECONNREFUSED)
            fail("connect to", path);
        usleep(20);
    }
    return fd;
}

static uint64_t ask(int fd, const char *text, size_t len)
{
    uint64_t began = now();
    said_len = 0;
    if (send(fd, text, len, MSG_NOSIGNAL) != (ssize_t)len)
        fail("send", "a request");
    /* An answer comes in one piece: head and body are written at once. */
    while (!memmem(said, said_len, "\r\n\r\n", 4)) {
        ssize_t got = recv(fd, said + said_len, sizeof said - said_len, 0);
        if (got <= 0)
            fail("receive", "an answer");
        said_len += got;
    }
    uint64_t took = now() - began;
    if (said_len < 13 || memcmp(said, "HTTP/1.1 20", 11))
        fail("refused:", "");
    return took;
}

static void wait_for(int fd, const char *marker)
{
    said_len = 0;
    while (!memmem(said, said_len, marker, strlen(marker))) {
        ssize_t got = read(fd, said + said_len, sizeof said - said_len);
        if (got <= 0)
            fail("there was no", marker);
        said_len += got;
    }
}

int main(int words, char **word)
{
    static const char get[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    if (words < 5)
        return 2;
    read_requests(word[2]);
    signal(SIGALRM, late);
    alarm(LIMIT);
    prctl(PR_SET_TIMERSLACK, 1);
    int news = watch(word[1]), out[2];
    if (pipe2(out, O_CLOEXEC))
        fail("pipe", "");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, out[1], 2);
    extern char **environ;
    uint64_t began = now();
    if (posix_spawn(&monitor, word[4], &actions, NULL, word + 4, environ))
        fail("start", word[4]);
    close(out[1]);
    int fd = meet(word[1], news);
    ask(fd, get, sizeof get - 1);
    uint64_t answered = now() - began;
    began = now();
    for (int i = 0; i < count; i++)
        requests[i].took = ask(fd, requests[i].text, requests[i].len);
    uint64_t marker = 0;
    if (*word[3]) {
        wait_for(out[0], word[3]);
        marker = now() - began;
    }
    printf("answer %llu\n", (unsigned long long)answered);
    for (int i = 0; i < count; i++)
        printf("%s %llu\n", requests[i].name, (unsigned long long)requests[i].took);
    if (marker)
        printf("marker %llu\n", (unsigned long long)marker);
    kill(monitor, SIGKILL);
    waitpid(monitor, NULL, 0);
    return 0;
}
