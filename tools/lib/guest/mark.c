/* The smallest guest: what tools/bench boots, and the mark that the other
 * guests' inits leave.
 *
 * Writes one byte, 0x60, to I/O port 0x80: "init reached", for the monitor. By
 * /dev/port, else by its own outb. The latter may fault even when the kernel
 * has allowed it (QEMU's emulated SVM reads the TSS otherwise): then no mark.
 * As process 1 it then prints the time since boot and powers off, or restarts
 * with vmm.end=reboot on the kernel's command line; with vmm.drain, not before
 * the last byte of the line has left the UART. No libc: built with
 *   gcc -static -nostdlib -no-pie -Os
 */
typedef unsigned long word;

static long call(long n, word a, word b, word c, word d, word e)
{
    register word r10 __asm__("r10") = d, r8 __asm__("r8") = e;
    long result;
    __asm__ volatile("syscall" : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

enum { READ = 0, WRITE = 1, OPEN = 2, SIGACTION = 13, IOCTL = 16, PWRITE = 18, GETPID = 39, EXIT = 60, UNLINK = 87,
       MKNOD = 133, MOUNT = 165, REBOOT = 169, IOPERM = 173, CLOCK_GETTIME = 228 };
#define O_WRONLY 1
#define O_NOCTTY 0400
#define CLOCK_BOOTTIME 7

static int contains(const char *text, const char *part)
{
    for (; *text; text++) {
        int i = 0;
        while (part[i] && text[i] == part[i]) i++;
        if (!part[i]) return 1;
    }
    return 0;
}

static void after_mark(void);

static struct { long seconds, nanoseconds; } now;

__attribute__((used, force_align_arg_pointer)) static void run(void)
{
    static const unsigned char mark = 0x60;
    struct { void (*handler)(void); word flags; void *restorer; word mask; } action = { after_mark, 0x44000000, 0, 0 };

    call(CLOCK_GETTIME, CLOCK_BOOTTIME, (word)&now, 0, 0, 0);
    /* A node of its own: nothing may be mounted yet. */
    call(MKNOD, (word)"/dev/.port", 020600, 1 << 8 | 4, 0, 0);
    long port = call(OPEN, (word)"/dev/.port", O_WRONLY, 0, 0, 0);
    call(UNLINK, (word)"/dev/.port", 0, 0, 0, 0);
    if (port < 0 || call(PWRITE, port, (word)&mark, 1, 0x80, 0) != 1) {
        call(SIGACTION, 11 /* SEGV */, (word)&action, 0, 8, 0);
        if (call(IOPERM, 0x80, 1, 1, 0, 0) == 0)
            __asm__ volatile("outb %0, %1" : : "a"(mark), "d"((unsigned short)0x80));
    }
    after_mark();
}

/* The rest; also the handler of a fault, which never returns. */
__attribute__((force_align_arg_pointer)) static void after_mark(void)
{
    static char cmdline[4097], line[40] = "INIT uptime_us=";
    char digits[24];
    int n = 0, at = 15;

    if (call(GETPID, 0, 0, 0, 0, 0) != 1)
        call(EXIT, 0, 0, 0, 0, 0);

    for (word us = now.seconds * 1000000ul + now.nanoseconds / 1000; us || !n; us /= 10)
        digits[n++] = '0' + us % 10;
    while (n) line[at++] = digits[--n];
    line[at++] = '\n';
    long console = call(OPEN, (word)"/dev/console", O_WRONLY | O_NOCTTY, 0, 0, 0);
    if (console >= 0) call(WRITE, console, (word)line, at, 0, 0);

    word end = 0x4321fedc; /* LINUX_REBOOT_CMD_POWER_OFF */
    call(MOUNT, (word)"proc", (word)"/proc", (word)"proc", 0, 0);
    long fd = call(OPEN, (word)"/proc/cmdline", 0, 0, 0, 0);
    if (fd >= 0) call(READ, fd, (word)cmdline, sizeof cmdline - 1, 0, 0);
    if (contains(cmdline, "vmm.drain")) call(IOCTL, console, 0x5409 /* TCSBRK */, 1, 0, 0);
    if (contains(cmdline, "vmm.end=reboot")) end = 0x01234567;
    call(REBOOT, 0xfee1dead, 672274793, end, 0, 0);
    for (;;) call(EXIT, 1, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start: xor %ebp, %ebp\n call run\n");
