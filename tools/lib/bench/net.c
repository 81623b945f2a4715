/* The guest of `tools/bench net`: one and four TCP streams to and from the host at 10.7.0.1, port 7000, and round trips
 * of 64 bytes. */
#include "traffic.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>

static struct sockaddr_in address(const char *text, int port)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, text, &in.sin_addr);
    return in;
}

static int set(int fd, const char *name, const char *ip)
{
    struct ifreq request = {0};
    struct sockaddr_in in = address(ip, 0), mask = address("255.255.255.0", 0);
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    memcpy(&request.ifr_addr, &in, sizeof in);
    if (ioctl(fd, SIOCSIFADDR, &request))
        return -1;
    memcpy(&request.ifr_netmask, &mask, sizeof mask);
    if (ioctl(fd, SIOCSIFNETMASK, &request) || ioctl(fd, SIOCGIFFLAGS, &request))
        return -1;
    request.ifr_flags |= IFF_UP;
    return ioctl(fd, SIOCSIFFLAGS, &request);
}

int main(void)
{
    begin();
    int fd = socket(AF_INET, SOCK_DGRAM, 0), one = 1, fds[STREAMS];
    for (int i = 0; i < 200 && set(fd, "eth0", "10.7.0.2"); i++)
        usleep(10000);
    struct sockaddr_in host = address("10.7.0.1", 7000);
    for (int i = 0; i < STREAMS; i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM, 0);
        for (int try = 0; connect(fds[i], (struct sockaddr *)&host, sizeof host); try++) {
            if (try == 200)
                end("connect to 10.7.0.1");
            usleep(10000);
        }
        setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    job_over("out-1", SEND, fds, 1, 32 << 20);
    job_over("in-1", RECEIVE, fds, 1, 32 << 20);
    job_over("out-4", SEND, fds, STREAMS, 32 << 20);
    job_over("in-4", RECEIVE, fds, STREAMS, 32 << 20);
    job_over("round-trip", ECHO, fds, 1, PINGS * PING);
    end(NULL);
}
