/* Loaded before the C library: counts what changes files below a folder, in a process and in those
   that it forks, and kills them all before the n-th operation. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096];
static long target;
static long *seen; /* shared by forked processes */

void watch(const char *path, long n) {
    seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    target = n;
    strncpy(folder, path, sizeof folder - 1);
}

long operations(void) { return *seen; }

static void count(const char *path) {
    if (!*folder || !path || strncmp(path, folder, strlen(folder)))
        return;
    if (__atomic_add_fetch(seen, 1, __ATOMIC_SEQ_CST) == target)
        kill(0, SIGKILL);
}

static void count_file(int file) {
    char link[64], path[4096];
    int before = errno;
    if (*folder) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        ssize_t n = readlink(link, path, sizeof path - 1);
        if (n > 0) {
            path[n] = 0;
            count(path);
        }
    }
    errno = before;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_FILE(type, name, parameters, arguments) \
    type name parameters { count_file(file); return REAL(name) arguments; }
#define ON_PATH(name, parameters, arguments) \
    int name parameters { count(path); return REAL(name) arguments; }
#define OPEN(name, parameters, ...) \
    int name parameters { \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if (flags & (O_CREAT | O_TRUNC)) count(path); \
        return REAL(name)(__VA_ARGS__, flags, mode); \
    }

ON_FILE(ssize_t, write, (int file, const void *data, size_t n), (file, data, n))
ON_FILE(ssize_t, pwrite, (int file, const void *data, size_t n, off_t at), (file, data, n, at))
ON_FILE(ssize_t, pwrite64, (int file, const void *data, size_t n, off64_t at), (file, data, n, at))
ON_FILE(ssize_t, writev, (int file, const struct iovec *data, int n), (file, data, n))
ON_FILE(int, fsync, (int file), (file))
ON_FILE(int, fdatasync, (int file), (file))
ON_FILE(int, ftruncate, (int file, off_t n), (file, n))
ON_FILE(int, ftruncate64, (int file, off64_t n), (file, n))
ON_FILE(int, posix_fallocate, (int file, off_t at, off_t n), (file, at, n))
ON_FILE(int, posix_fallocate64, (int file, off64_t at, off64_t n), (file, at, n))
ON_PATH(unlink, (const char *path), (path))
ON_PATH(rmdir, (const char *path), (path))
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
ON_PATH(rename, (const char *path, const char *to), (path, to))
ON_PATH(unlinkat, (int at, const char *path, int flags), (at, path, flags))
ON_PATH(mkdirat, (int at, const char *path, mode_t mode), (at, path, mode))
ON_PATH(renameat, (int at, const char *path, int there, const char *to), (at, path, there, to))
OPEN(open, (const char *path, int flags, ...), path)
OPEN(open64, (const char *path, int flags, ...), path)
OPEN(openat, (int at, const char *path, int flags, ...), at, path)
OPEN(openat64, (int at, const char *path, int flags, ...), at, path)
