/* The guest of `tools/bench block`: init of an initrd. Reads /dev/vda with O_DIRECT at depth 1, first 1 MiB at a time
 * in order, then 4 KiB at random places, prints the rates and powers off. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <linux/fs.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void end(const char *why)
{
    if (why)
        perror(why);
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    reboot(RB_AUTOBOOT);
}

int main(void)
{
    const double seconds = 2;
    uint64_t size = 0, at = 0, ops = 0, seed = 88172645463325252u;
    char *buffer = aligned_alloc(4096, 1 << 20);

    mkdir("/dev", 0755);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    int fd = -1;
    for (int i = 0; i < 500 && fd < 0; i++) {
        fd = open("/dev/vda", O_RDONLY | O_DIRECT);
        if (fd < 0)
            usleep(10000);
    }
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size) || size < 1 << 21)
        end("/dev/vda");

    double start = now(), took;
    do {
        if (pread(fd, buffer, 1 << 20, at) != 1 << 20)
            end("sequential read");
        at = at + (2 << 20) <= size ? at + (1 << 20) : 0;
        ops++;
    } while ((took = now() - start) < seconds);
    double rate = ops * (double)(1 << 20) / 1e6 / took;

    start = now();
    ops = 0;
    do {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        if (pread(fd, buffer, 4096, seed % (size / 4096) * 4096) != 4096)
            end("random read");
        ops++;
    } while ((took = now() - start) < seconds);
    printf("BLOCK seq_mb_s=%.1f rand_iops=%.1f\n", rate, ops / took);
    end(NULL);
}
