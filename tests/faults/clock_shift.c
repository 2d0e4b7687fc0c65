/* Preloaded into a redis-server: its time of day is off by the seconds in the file $CLOCK_SHIFT, read again each time. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long shift(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("CLOCK_SHIFT"), "r");
    if (file) {
        if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
        fclose(file);
    }
    return seconds;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec real;
    int (*get)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    (void)zone;
    int status = get(CLOCK_REALTIME, &real);
    now->tv_sec = real.tv_sec + shift();
    now->tv_usec = real.tv_nsec / 1000;
    return status;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*get)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int status = get(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += shift();
    return status;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
