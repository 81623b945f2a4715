/* A driver that lies, for the guest tests: pokes one virtio-mmio device through /dev/mem.
 *
 *   lies ADDRESS       ADDRESS: of its registers, in hexadecimal; its real driver must be unbound
 *
 * Writes every register at every width, sets statuses and features that nobody may, gives rings that are no memory or
 * garbage, chains that loop, leave the table or memory, and kicks without pause. After each lie it resets the device, and
 * that must work. Prints the number of lies. Of the guest's memory only its own pages are offered, so that it lives on.
 * virtio 1.2, 2.7 and 4.2.2.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { DEVICE_ID = 0x08, FEATURES_SEL = 0x14, DRIVER_FEATURES = 0x20, DRIVER_FEATURES_SEL = 0x24, QUEUE_SEL = 0x30,
       QUEUE_NUM_MAX = 0x34, QUEUE_NUM = 0x38, QUEUE_READY = 0x44, QUEUE_NOTIFY = 0x50, INTERRUPT_ACK = 0x64,
       STATUS = 0x70, DESC = 0x80, AVAIL = 0x90, USED = 0xa0, CONFIG = 0x100 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };
enum { PAGE = 4096, PAGES = 8, SIZE = 16 };

struct desc { uint64_t addr; uint32_t len; uint16_t flags, next; };

static volatile uint8_t *device;
static uint8_t *pages;
static uint64_t physical[PAGES];
static unsigned long lies;
static uint64_t seed = 88172645463325252u;

static struct desc *table(void) { return (struct desc *)pages; }
static volatile uint16_t *avail(void) { return (uint16_t *)(pages + PAGE); }

static uint64_t any(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static uint32_t get(int at) { return *(volatile uint32_t *)(device + at); }
static void put(int at, uint32_t value) { *(volatile uint32_t *)(device + at) = value; }

static void fail(const char *what)
{
    printf("lies: %s\n", what);
    exit(1);
}

static void reset(void)
{
    lies++;
    put(STATUS, 0);
    if (get(STATUS) != 0)
        fail("a reset did not work");
}

static void ring(int queue, uint64_t desc, uint64_t driver, uint64_t used, uint32_t size)
{
    uint64_t parts[] = { desc, driver, used };
    put(QUEUE_SEL, queue);
    put(QUEUE_NUM, size);
    for (int i = 0; i < 3; i++) {
        put(DESC + 0x10 * i, parts[i]);
        put(DESC + 0x10 * i + 4, parts[i] >> 32);
    }
    put(QUEUE_READY, 1);
}

static void begin(uint32_t low)
{
    put(STATUS, ACKNOWLEDGE);
    put(STATUS, ACKNOWLEDGE | DRIVER);
    put(DRIVER_FEATURES_SEL, 0);
    put(DRIVER_FEATURES, low);
    put(DRIVER_FEATURES_SEL, 1);
    put(DRIVER_FEATURES, 1); /* VIRTIO_F_VERSION_1 */
    put(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

static void up(void) { put(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK); }

static int queues(void)
{
    int count = 0;
    for (;; count++) {
        put(QUEUE_SEL, count);
        if (get(QUEUE_NUM_MAX) == 0)
            return count;
    }
}

/* A running device with one good ring, its content as `set` left it. */
static void with_ring(int queue, void (*set)(int), int which, uint32_t features)
{
    memset(pages, 0, 3 * PAGE);
    memset(pages + 3 * PAGE, 0x80 | any(), PAGE * (PAGES - 3));
    begin(features);
    ring(queue, physical[0], physical[1], physical[2], SIZE);
    avail()[1] = 1;
    set(which);
    up();
    put(QUEUE_NOTIFY, queue);
    put(INTERRUPT_ACK, 3);
    reset();
}

static void chain(int at, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    table()[at] = (struct desc){ addr, len, flags, next };
}

static void bad_chain(int which)
{
    uint64_t own = physical[4];
    chain(0, own, 64, NEXT, 1);
    chain(1, own + 64, 512, WRITE | NEXT, 2);
    chain(2, own + 1024, 1, WRITE, 0);
    switch (which) {
    case 0: chain(0, own, 64, NEXT, 0); break;                              /* a loop */
    case 1: chain(1, own, 64, NEXT | WRITE, 0); break;                      /* a longer one */
    case 2: chain(0, own, 64, NEXT, SIZE); break;                           /* out of the table */
    case 3: chain(0, own, 64, NEXT, 65535); break;
    case 4: avail()[2] = SIZE; break;                                       /* a head out of the table */
    case 5: avail()[2] = 65535; break;
    case 6: avail()[1] = 65535; break;                                      /* more than the ring has */
    case 7: avail()[1] = SIZE + 1; break;
    case 8: chain(0, 1ul << 45, 64, NEXT, 1); break;                        /* no memory */
    case 9: chain(1, 1ul << 45, 512, WRITE | NEXT, 2); break;
    case 10: chain(1, ~0ul - 100, 512, WRITE | NEXT, 2); break;             /* around the end of addresses */
    case 11: chain(1, 0xd0000000, 512, WRITE | NEXT, 2); break;             /* registers */
    case 12: chain(0, 1ul << 45, ~0u, NEXT, 1); break;                      /* 4 GiB */
    case 13: chain(1, 1ul << 45, ~0u, WRITE | NEXT, 2); break;
    case 14: chain(2, own, 64, 0, 0); break;                                /* readable behind writable */
    case 15: chain(0, own, 0, NEXT, 1); break;                              /* nothing */
    case 16: chain(0, own, 0, 0, 0); break;
    case 17: chain(0, physical[3], 64, INDIRECT, 0); memset(pages + 3 * PAGE, 0xff, 64); break;
    case 18: chain(0, physical[3], 15, INDIRECT, 0); break;                 /* half a descriptor */
    case 19: chain(0, physical[3], 0, INDIRECT, 0); break;
    case 20: chain(0, 1ul << 45, 64, INDIRECT, 0); break;
    case 21: chain(0, physical[0], 16 * SIZE, INDIRECT, 0); break;          /* the table itself */
    case 22: chain(0, physical[3], ~15u, INDIRECT, 0); break;
    case 23: chain(0, own, 64, INDIRECT | NEXT, 1); break;                  /* both */
    case 24: chain(0, own, 64, 0xffff, 1); break;
    default: break;                                                         /* well-formed, its bytes garbage */
    }
}
enum { CHAINS = 26 };

/* Descriptors at random; those that are memory are ours. */
static void garbage(int count)
{
    for (int i = 0; i < SIZE; i++) {
        uint64_t r = any(), addr = physical[3 + r % (PAGES - 3)] + (r >> 8) % PAGE;
        uint32_t len = (r >> 20) % (PAGE - (addr & (PAGE - 1)));
        if (r % 13 == 0) {
            addr = r | 1ul << 50;
            len |= (r & 32) << 26;
        }
        chain(i, addr, len, (r >> 32) & (r % 5 ? NEXT | WRITE : 7), (r >> 40) % (SIZE + 1));
        avail()[2 + i] = (r >> 48) % (SIZE + 1);
    }
    avail()[0] = any() & 1;
    avail()[1] = count;
}

static void registers(void)
{
    static const uint64_t values[] = { 0, 1, 0x7f, ~0ul, 1ul << 31 };
    for (int at = 0; at < 0x200; at++)
        for (unsigned v = 0; v < sizeof values / sizeof *values; v++) {
            if (at == STATUS && values[v] == 0)
                continue;
            *(volatile uint8_t *)(device + at) = values[v];
            if (at % 2 == 0)
                *(volatile uint16_t *)(device + at) = values[v];
            if (at % 4 == 0)
                put(at, values[v]);
            if (at % 8 == 0)
                *(volatile uint64_t *)(device + at) = values[v];
        }
    reset();
    static const uint8_t statuses[] = { 4, 8, 12, 15, 0x40, 0x80, 0xff, 11, 7 };
    for (unsigned i = 0; i < sizeof statuses; i++) {
        put(STATUS, statuses[i]);
        up();
        reset();
    }
    begin(~0u);
    up();
    reset();
}

static void rings(int queue)
{
    uint64_t good = physical[0];
    uint64_t bad[] = { 0, 1, 8, good + 1, good + 4, 0xd0000000, 0xbffffff0, 1ul << 45, ~0ul, ~15ul };
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
        for (int part = 0; part < 3; part++) {
            begin(0);
            ring(queue, part == 0 ? bad[i] : physical[0], part == 1 ? bad[i] : physical[1],
                 part == 2 ? bad[i] : physical[2], SIZE);
            up();
            put(QUEUE_NOTIFY, queue);
            reset();
        }
    static const uint32_t sizes[] = { 0, 3, 7, 0x8000, 0x10000, ~0u };
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        begin(0);
        ring(queue, physical[0], physical[1], physical[2], sizes[i]);
        up();
        put(QUEUE_NOTIFY, queue);
        reset();
    }
    /* One page for all three parts, and a queue that is taken away while it runs. */
    begin(0);
    ring(queue, good, good, good, SIZE);
    up();
    put(QUEUE_NOTIFY, queue);
    put(QUEUE_READY, 0);
    put(QUEUE_NOTIFY, queue);
    reset();
}

static void storm(int queue)
{
    memset(pages, 0, PAGE * PAGES);
    begin(0);
    ring(queue, physical[0], physical[1], physical[2], SIZE);
    up();
    for (int i = 0; i < 5000; i++) {
        put(QUEUE_NOTIFY, queue);
        if (i % 16 == 0)
            put(QUEUE_NOTIFY, any());
    }
    reset();
}

static void map(uint64_t address)
{
    int memory = open("/dev/mem", O_RDWR | O_SYNC), pagemap = open("/proc/self/pagemap", O_RDONLY);
    device = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, address);
    pages = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory < 0 || pagemap < 0 || device == MAP_FAILED || pages == MAP_FAILED || mlock(pages, PAGES * PAGE))
        fail("no memory to poke with");
    for (int i = 0; i < PAGES; i++) {
        uint64_t entry = 0;
        pages[i * PAGE] = 1;
        pread(pagemap, &entry, 8, ((uintptr_t)pages / PAGE + i) * 8);
        physical[i] = (entry & ((1ul << 55) - 1)) * PAGE;
        if (physical[i] == 0)
            fail("no physical addresses");
    }
}

int main(int argc, char **argv)
{
    if (argc != 2)
        fail("an address is expected");
    map(strtoull(argv[1], NULL, 16));
    reset();
    printf("lies: device %u, %d queues\n", get(DEVICE_ID), queues());
    registers();
    for (int queue = 0; queue < queues(); queue++) {
        rings(queue);
        for (int which = 0; which < CHAINS; which++) {
            with_ring(queue, bad_chain, which, 0);
            with_ring(queue, bad_chain, which, 3u << 28); /* indirect descriptors, event indices */
        }
        for (int i = 0; i < 50; i++)
            with_ring(queue, garbage, any() % (SIZE + 2), i % 2 ? 3u << 28 : 0);
        storm(queue);
    }
    printf("lies: told %lu\n", lies);
    return 0;
}
