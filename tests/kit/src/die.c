// Preloaded, it kills its own process with SIGKILL at the Nth of these calls, whichever thread makes it:
// DIE_AT="fdatasync N" at an entry of the receipt, after its bytes are written and before anything is done about it;
// DIE_AT="write N" at an entry before they are; DIE_AT="fsync N" at any file of ours that is about to take its place.
// Children have it too, and touch none of these.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HOME "/var/lib/echoes-appliance/"

// Not atoi(): built on a newer release, that would ask for one which older ones lack.
static int digits(const char *at) {
    int n = 0;
    while (*at >= '0' && *at <= '9') n = n * 10 + *at++ - '0';
    return n;
}

static void die_at(const char *call, int fd) {
    static int calls;
    char link[32], path[256];
    const char *at = getenv("DIE_AT"), *n = at ? strchr(at, ' ') : NULL;
    if (!n || strncmp(at, call, n - at) != 0 || call[n - at]) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len < 0) return;
    path[len] = 0;
    if (strncmp(path, HOME, strlen(HOME)) != 0) return;
    if (strcmp(call, "fsync") != 0 && strcmp(path, HOME "receipt.jsonl") != 0) return;
    if (__atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST) == digits(n + 1)) kill(getpid(), SIGKILL);
}

// Made as system calls: what dlsym() is part of differs between the releases.
int fdatasync(int fd) {
    die_at("fdatasync", fd);
    return syscall(SYS_fdatasync, fd);
}

int fsync(int fd) {
    die_at("fsync", fd);
    return syscall(SYS_fsync, fd);
}

ssize_t write(int fd, const void *bytes, size_t len) {
    die_at("write", fd);
    return syscall(SYS_write, fd, bytes, len);
}
