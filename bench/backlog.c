/*
 * Preloaded into OpenSMTPD: its queue of connections not taken yet is 5 long, and
 * of 40 clients that come at once most would wait a second for their SYN's retry.
 */
#define _GNU_SOURCE
#include <dlfcn.h>

int listen(int fd, int backlog)
{
    int (*libc)(int, int);
    *(void **)&libc = dlsym(RTLD_NEXT, "listen");
    return libc(fd, backlog < 1024 ? 1024 : backlog);
}
