/*
 * Preloaded into a sidecar under test: calls to the operating system fail as they do on a machine that has the fault.
 * A fault lasts for as long as a file of its name is in the directory that the variable FAULTS names.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int has(const char *fault)
{
    const char *directory = getenv("FAULTS");
    char path[4096];
    int length = directory ? snprintf(path, sizeof path, "%s/%s", directory, fault) : -1;
    return length > 0 && length < (int)sizeof path && access(path, F_OK) == 0;
}

static int fail(int error)
{
    errno = error;
    return -1;
}

/* The disk takes as long as the fault lasts. */
static void hang(void)
{
    while (has("hung-sync"))
        usleep(1000);
}

/* The disk lost what it was given. */
int fdatasync(int fd)
{
    hang();
    return has("failed-sync") ? fail(EIO) : ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}

int fsync(int fd)
{
    hang();
    return has("failed-sync") ? fail(EIO) : ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

/* The disk is full: files keep what they have and grow no more. */
static int outgrows_disk(int fd, size_t count, off_t offset)
{
    struct stat found;
    return has("full-disk") && fstat(fd, &found) == 0 && offset + (off_t)count > found.st_size;
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset)
{
    ssize_t (*next)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite");
    return outgrows_disk(fd, count, offset) ? fail(ENOSPC) : next(fd, bytes, count, offset);
}

#ifdef __GLIBC__
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset)
{
    ssize_t (*next)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
    return outgrows_disk(fd, count, offset) ? fail(ENOSPC) : next(fd, bytes, count, offset);
}
#endif

/* The container has as many threads as it may have. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(RTLD_NEXT, "pthread_create");
    return has("no-threads") ? EAGAIN : next(thread, attributes, start, argument);
}
