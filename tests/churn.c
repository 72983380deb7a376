/* Churn: makes, writes, links, renames and removes files, as fast as the kernel takes it.
 * churn DIRECTORY CYCLES THREADS NAMES: each thread works in a directory of its own, on so many names in turn, and
 * leaves every seventh file of its last round. A cycle is five changes. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *root;
static long cycles, names;

static void must(int result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(1);
    }
}

static void *work(void *number) {
    char path[4096], name[64], other[64];
    snprintf(path, sizeof path, "%s/churn%ld", root, (long)number);
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        must(-1, path);
    int dir = open(path, O_RDONLY | O_DIRECTORY);
    must(dir, path);
    for (long i = 0; i < cycles; i++) {
        snprintf(name, sizeof name, "f%ld", i % names);
        snprintf(other, sizeof other, "g%ld", i % names);
        int fd = openat(dir, name, O_WRONLY | O_CREAT, 0644);
        must(fd, name);
        must(write(fd, name, 8) > 0 ? 0 : -1, name);
        close(fd);
        must(fchmodat(dir, name, i % 2 ? 0600 : 0640, 0), name);
        must(renameat(dir, name, dir, other), other);
        if (i + names < cycles || i % 7)
            must(unlinkat(dir, other, 0), other);
    }
    close(dir);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[64];
    if (argc != 5)
        return 2;
    root = argv[1];
    cycles = atol(argv[2]);
    long count = atol(argv[3]);
    names = atol(argv[4]);
    if (count > 64)
        return 2;
    for (long i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)i))
            return 1;
    for (long i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
