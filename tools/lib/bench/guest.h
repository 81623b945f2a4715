/* What the guests of `tools/bench` share. Each is init of an initrd and does its jobs one after the other.
 *
 * On the console: `START job`, then the job, then `DONE job ops=N bytes=N ns=N`. Around a job the guest sleeps, so that
 * the host, which may have one CPU, can look at its clocks. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static uint64_t started;

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* Ends the VM: as well as it can under each monitor. */
static void end(const char *why)
{
    if (why)
        perror(why);
    fflush(stdout);
    sync();
    char line[4096] = "";
    int fd = open("/proc/cmdline", O_RDONLY);
    if (fd < 0 || read(fd, line, sizeof line - 1) < 0 || !strstr(line, "vmm.end=reboot"))
        reboot(RB_POWER_OFF);
    reboot(RB_AUTOBOOT);
}

static void begin(void)
{
    mkdir("/dev", 0755);
    mkdir("/proc", 0755);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    mount("proc", "/proc", "proc", 0, NULL);
    setvbuf(stdout, NULL, _IOLBF, 0);
}

static void start(const char *job)
{
    printf("START %s\n", job);
    usleep(60000);
    started = now();
}

static void done(const char *job, uint64_t ops, uint64_t bytes)
{
    uint64_t took = now() - started;
    printf("DONE %s ops=%llu bytes=%llu ns=%llu\n", job, (unsigned long long)ops, (unsigned long long)bytes,
           (unsigned long long)took);
    usleep(60000);
}
