/* The host's side of `tools/bench net` and `vsock`: serves each connection in a process of its own.
 *
 *   peer tcp ADDRESS PORT | peer unix PATH | peer vsock PORT
 *
 * Prints a line when it listens. */
#include "stream.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/un.h>
#include <linux/vm_sockets.h>

int main(int count, char **words)
{
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_un un;
        struct sockaddr_vm vm;
    } at;
    socklen_t length = 0;
    int one = 1;
    memset(&at, 0, sizeof at);
    signal(SIGCHLD, SIG_IGN);
    if (count == 4 && !strcmp(words[1], "tcp")) {
        at.in = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(words[3]))};
        inet_pton(AF_INET, words[2], &at.in.sin_addr);
        length = sizeof at.in;
    } else if (count == 3 && !strcmp(words[1], "unix")) {
        at.un.sun_family = AF_UNIX;
        strncpy(at.un.sun_path, words[2], sizeof at.un.sun_path - 1);
        unlink(words[2]);
        length = sizeof at.un;
    } else if (count == 3 && !strcmp(words[1], "vsock")) {
        at.vm = (struct sockaddr_vm){.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = atoi(words[2])};
        length = sizeof at.vm;
    }
    int fd = length ? socket(at.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, &at.any, length) || listen(fd, 16)) {
        perror("peer");
        return 1;
    }
    puts("listening");
    fflush(stdout);
    for (;;) {
        int stream = accept(fd, NULL, NULL);
        if (stream >= 0 && fork() == 0) {
            if (at.any.sa_family == AF_INET)
                setsockopt(stream, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            serve(stream);
            return 0;
        }
        if (stream >= 0)
            close(stream);
    }
}
