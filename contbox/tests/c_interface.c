/* Uses contbox.h as an application would: argv[1] is a pool. Makes and exports a box in slot 0, takes slot 1 over. */
#include "contbox.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

static const uint8_t local[16] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 77, 0, 100 };
static const uint8_t peer[16] = { 0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4 };

static int fail(const char *what)
{
    fprintf(stderr, "%s failed\n", what);
    return 1;
}

int main(int argc, char **argv)
{
    struct contbox_pool pool;
    struct contbox box;
    struct stat stat;
    struct iovec log[2];
    int fd = argc == 2 ? open(argv[1], O_RDWR) : -1;
    if (fd < 0 || fstat(fd, &stat) != 0)
        return fail("open");
    void *mapping = mmap(NULL, (size_t)stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapping == MAP_FAILED || contbox_open(&pool, mapping, (size_t)stat.st_size) != 0)
        return fail("contbox_open");
    if (contbox_open(&pool, mapping, (size_t)stat.st_size - 1) == 0)
        return fail("refusing a short mapping");
    if (contbox_create(&box, &pool, 0, 7, local, 8080, peer, 4711) != 0)
        return fail("contbox_create");
    for (uint64_t number = 1; number <= 5; number++) {
        char state[256];
        /* By turns in the front of the slot and in its body. */
        int length = snprintf(state, sizeof state, "state %0*d", number & 1 ? 150 : 1, (int)number);
        if (contbox_export_state(&box, state, (uint32_t)length, 250 * number, 7 * number) != 0)
            return fail("contbox_export_state");
    }
    if (contbox_export_state(&box, "", 0, 1, 1) != CONTBOX_STEPS_BACK)
        return fail("refusing a step back");
    if (contbox_log(&box, 1250, 257, log) == 0 || contbox_log(&box, 1250, 100, log) != 0)
        return fail("contbox_log");
    for (size_t at = 0; at < 100; at++) {
        struct iovec *stretch = at < log[0].iov_len ? &log[0] : &log[1];
        ((char *)stretch->iov_base)[stretch == &log[0] ? at : at - log[0].iov_len] = (char)(1250 + at);
    }

    char state[256];
    uint32_t length = sizeof state;
    uint64_t lsr, lsw;
    if (contbox_import_state(&box, &pool, 1, state, &length, &lsr, &lsw) != 0)
        return fail("contbox_import_state");
    printf("%.*s %d %d\n", (int)length, state, (int)lsr, (int)lsw);
    return contbox_export_state(&box, "went on in C", 12, lsr, lsw) == 0 ? 0 : fail("the export after an import");
}
