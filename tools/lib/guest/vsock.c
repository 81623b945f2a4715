/* Speaks AF_VSOCK for the guest tests:
 *
 *   vsock echo PORT COUNT     listens; sends back what comes on COUNT connections, each until its sender is done
 *   vsock connect PORT        to the host: standard input there, then the answer to standard output
 *   vsock many PORT COUNT     COUNT connections to the host at once; each sends its number (4 bytes) and wants it back
 *
 * No libc, as mark.c.
 */
typedef unsigned long word;
typedef unsigned int u32;

static long call(long n, word a, word b, word c, word d, word e)
{
    register word r10 __asm__("r10") = d, r8 __asm__("r8") = e;
    long result;
    __asm__ volatile("syscall" : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

enum { READ = 0, WRITE = 1, CLOSE = 3, POLL = 7, SOCKET = 41, CONNECT = 42, ACCEPT = 43, SHUTDOWN = 48, BIND = 49,
       LISTEN = 50, EXIT = 60, PRLIMIT = 302 };
enum { AF_VSOCK = 40, SOCK_STREAM = 1, POLLIN = 1, MOST = 1024 };

struct address { unsigned short family, reserved; u32 port, cid; unsigned char flags, zero[3]; };
struct poll { int fd; short events, revents; };

static char buffer[65536];
static struct poll polls[MOST + 1];
static int sockets[MOST];

static void say(const char *text) { word n = 0; while (text[n]) n++; call(WRITE, 1, (word)text, n, 0, 0); }

static void say_number(const char *name, word value)
{
    char digits[24];
    int at = sizeof digits;
    digits[--at] = '\n';
    do digits[--at] = '0' + value % 10; while (value /= 10);
    say(name);
    call(WRITE, 1, (word)&digits[at], sizeof digits - at, 0, 0);
}

static void fail(const char *what, long error)
{
    say("vsock: "); say(what); say_number(" failed: errno ", -error);
    call(EXIT, 1, 0, 0, 0, 0);
}

static u32 number(const char *text) { u32 n = 0; while (*text) n = n * 10 + (*text++ - '0'); return n; }

static void write_all(int fd, const char *from, long n)
{
    while (n > 0) {
        long done = call(WRITE, fd, (word)from, n, 0, 0);
        if (done <= 0) fail("write", done);
        from += done, n -= done;
    }
}

static int connect(u32 port)
{
    struct address to = { AF_VSOCK, 0, port, 2, 0, { 0 } };
    long fd = call(SOCKET, AF_VSOCK, SOCK_STREAM, 0, 0, 0);
    if (fd < 0) fail("socket", fd);
    long error = call(CONNECT, fd, (word)&to, sizeof to, 0, 0);
    if (error) fail("connect", error);
    return fd;
}

static void echo(u32 port, u32 count)
{
    struct address at = { AF_VSOCK, 0, port, ~0u, 0, { 0 } };
    word bytes = 0;
    u32 accepted = 0, ended = 0, used = 1;
    long fd = call(SOCKET, AF_VSOCK, SOCK_STREAM, 0, 0, 0), error;
    if (fd < 0) fail("socket", fd);
    if ((error = call(BIND, fd, (word)&at, sizeof at, 0, 0))) fail("bind", error);
    if ((error = call(LISTEN, fd, MOST, 0, 0, 0))) fail("listen", error);
    say("LISTENING\n");
    polls[0].fd = fd, polls[0].events = POLLIN;
    while (ended < count) {
        call(POLL, (word)polls, used, -1l, 0, 0);
        for (u32 i = 1; i < used; i++) {
            if (!polls[i].revents) continue;
            long n = call(READ, polls[i].fd, (word)buffer, sizeof buffer, 0, 0);
            if (n > 0) { write_all(polls[i].fd, buffer, n); bytes += n; continue; }
            if (n < 0) fail("read", n);
            call(SHUTDOWN, polls[i].fd, 1, 0, 0, 0);
            call(CLOSE, polls[i].fd, 0, 0, 0, 0);
            polls[i] = polls[--used];
            polls[i--].revents = 0;
            ended++;
        }
        if (polls[0].revents && accepted < count && used <= MOST) {
            long peer = call(ACCEPT, fd, 0, 0, 0, 0);
            if (peer < 0) fail("accept", peer);
            polls[used].fd = peer, polls[used].events = POLLIN, polls[used++].revents = 0;
            accepted++;
        }
    }
    say_number("echoed=", bytes);
}

static void both_ways(u32 port)
{
    int fd = connect(port);
    long n;
    while ((n = call(READ, 0, (word)buffer, sizeof buffer, 0, 0)) > 0) write_all(fd, buffer, n);
    call(SHUTDOWN, fd, 1, 0, 0, 0);
    while ((n = call(READ, fd, (word)buffer, sizeof buffer, 0, 0)) > 0) write_all(1, buffer, n);
    if (n < 0) fail("read", n);
}

static void many(u32 port, u32 count)
{
    u32 right = 0;
    for (u32 i = 0; i < count; i++) sockets[i] = connect(port);
    for (u32 i = 0; i < count; i++) write_all(sockets[i], (char *)&i, 4);
    for (u32 i = 0; i < count; i++) {
        u32 answer = ~0u;
        if (call(READ, sockets[i], (word)&answer, 4, 0, 0) == 4 && answer == i) right++;
    }
    say_number("right=", right);
}

__attribute__((used)) static void run(word *stack)
{
    char **args = (char **)(stack + 1);
    word limit[2] = { 4096, 4096 };
    call(PRLIMIT, 0, 7 /* NOFILE */, (word)limit, 0, 0);
    u32 port = stack[0] > 2 ? number(args[2]) : 0, count = stack[0] > 3 ? number(args[3]) : 1;
    if (count > MOST) count = MOST;
    switch (stack[0] > 2 ? args[1][0] : 0) {
    case 'e': echo(port, count); break;
    case 'c': both_ways(port); break;
    case 'm': many(port, count); break;
    default: say("usage: vsock echo|connect|many PORT [COUNT]\n"); call(EXIT, 2, 0, 0, 0, 0);
    }
    call(EXIT, 0, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start: xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call run\n");
