/* The guest of `tools/bench vsock`: a stream to and from the host's port 7000, and round trips of 64 bytes. */
#include "traffic.h"
#include <linux/vm_sockets.h>

int main(void)
{
    begin();
    struct sockaddr_vm host = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = 7000};
    int fd = -1;
    for (int i = 0; i < 200; i++) {
        fd = socket(AF_VSOCK, SOCK_STREAM, 0);
        if (fd >= 0 && connect(fd, (struct sockaddr *)&host, sizeof host) == 0)
            break;
        if (i == 199)
            end("connect to the host");
        close(fd);
        usleep(10000);
    }
    job_over("out", SEND, &fd, 1, 32 << 20);
    job_over("in", RECEIVE, &fd, 1, 32 << 20);
    job_over("round-trip", ECHO, &fd, 1, PINGS * PING);
    end(NULL);
}
