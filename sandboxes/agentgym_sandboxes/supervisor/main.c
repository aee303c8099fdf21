/* The loop: one thread, no waiting but here. Ends when its time is over, its owner is gone, or it is told to from
 * outside of the sandbox; as the first process of its namespace it takes everything with it. */

#include "supervisor.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_POLLS = 4096 };

static Buffer incoming;

static void greet(uint32_t channel) {
    char text[128];
    int length = snprintf(text, sizeof text, "{\"protocol\": %d, \"pid\": %d, \"uid\": %d}", PROTOCOL, (int)getpid(),
                          (int)getuid());
    send_frame(HELLO, channel, text, (size_t)length);
}

static void handle(uint32_t type, uint32_t channel, const char *data, size_t length) {
    switch (type) {
    case PING: greet(channel); break;
    case EXEC: start_command(channel, data, length); break;
    case INPUT: take_input(channel, data, length); break;
    case INPUT_END: take_input_end(channel); break;
    case KILL: kill_command(channel); break;
    case RESIZE: if (length == 4) resize(channel, (int)(get32(data) >> 16), (int)(get32(data) & 0xffff)); break;
    case GET: get_files(channel, data, length); break;
    case PUT: put_begin(channel, data, length); break;
    case PUT_DATA: put_data(channel, data, length); break;
    case PUT_END: put_end(channel); break;
    case CREDIT: if (length == 4) take_credit(channel, get32(data)); break;
    case LISTEN: if (length == 4) listen_on(channel, (int)get32(data)); break;
    default: die("an unknown request");
    }
}

static void take_requests(void) {
    reserve(&incoming, CHUNK);
    ssize_t length = read(0, incoming.data + incoming.length, CHUNK);
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (length <= 0) _exit(0);
    incoming.length += (size_t)length;
    size_t done = 0;
    while (incoming.length - done >= HEADER) {
        const char *frame = incoming.data + done;
        uint32_t size = get32(frame);
        if (size > MAX_FRAME) die("a request that is too long");
        if (incoming.length - done < HEADER + size) break;
        handle(get32(frame + 8), get32(frame + 4), frame + HEADER, size);
        done += HEADER + size;
    }
    drop(&incoming, done);
}

static void take_signals(int fd) {
    struct signalfd_siginfo info;
    while (read(fd, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo == SIGCHLD) reap();
        if (info.ssi_signo == SIGTERM && (info.ssi_pid == 0 || getpid() != 1)) _exit(0); /* 0: from outside */
    }
}

static int wait_ms(uint64_t ends) {
    int64_t now = (int64_t)now_us(), first = next_deadline_us(), left = (int64_t)ends - now;
    if (first >= 0 && first - now < left) left = first - now;
    if (left <= 0) return 0;
    int64_t ms = (left + 999) / 1000;
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "usage: %s SECONDS-TO-LIVE\n", arguments[0]);
        return 64;
    }
    uint64_t ends = now_us() + (uint64_t)(strtod(arguments[1], NULL) * 1e6);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* nobody may trace us or open our descriptors */
    umask(0);                           /* files get the mode that they are to have */
    if (getpid() != 1) prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    sigset_t ours;
    sigemptyset(&ours);
    sigaddset(&ours, SIGCHLD);
    sigaddset(&ours, SIGTERM);
    sigprocmask(SIG_BLOCK, &ours, NULL);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &ours, SFD_NONBLOCK | SFD_CLOEXEC);
    if (signals < 0) die("signalfd");
    nonblocking(0), nonblocking(1);
    open_counters();
    greet(0);

    static struct pollfd polls[MOST_POLLS];
    for (;;) {
        if (flush_some() < 0) return 0;
        polls[0] = (struct pollfd){.fd = 0, .events = POLLIN};
        polls[1] = (struct pollfd){.fd = queued() ? 1 : -1, .events = POLLOUT};
        polls[2] = (struct pollfd){.fd = signals, .events = POLLIN};
        int watched = watch(polls + 3, MOST_POLLS - 3);
        if (poll(polls, (nfds_t)(watched + 3), wait_ms(ends)) < 0 && errno != EINTR) die("poll");
        if (now_us() >= ends) return 0;
        on_time();
        if (polls[2].revents) take_signals(signals);
        serve(polls + 3, watched);
        if (polls[0].revents) take_requests();
    }
}
