/* Running commands, and connections that programs in the sandbox make to its proxy: everything with streams. */

#include "supervisor.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LINGER_US = 25000, KICK_US = 4000, KICKS_BEFORE_SWEEP = 40, TUNNEL = 0x40000000 };
enum { MOST_CONNECTIONS = 256, TERMINAL_BYTES = 1 << 17 };

typedef struct { /* the first bytes go out at once, the last are kept, what lies between is counted */
    int fd;
    uint64_t head, tail_room, dropped;
    Buffer tail;
} Sink;

typedef enum { RUNNING, KILLING, LEFT_BEHIND, CONNECTED, LISTENING } State;

typedef struct Channel {
    struct Channel *next;
    uint32_t id, flags;
    State state;
    pid_t keeper;
    int in, control, status;
    Sink out, err;
    Buffer input;
    int input_ends;
    int64_t credit;
    uint64_t deadline, next_kick, linger_until, oom_before, forks_before;
    int kicks, has_ended, all_gone, kind;
    int32_t value;
} Channel;

static Channel *channels;
static uint32_t connections, connected;

static Channel *channel_of(uint32_t id) {
    for (Channel *one = channels; one; one = one->next)
        if (one->id == id && one->state != LEFT_BEHIND) return one;
    return NULL;
}

static Channel *new_channel(uint32_t id, State state) {
    Channel *made = calloc(1, sizeof *made);
    if (!made) die("no memory");
    *made = (Channel){.next = channels, .id = id, .state = state, .keeper = -1, .in = -1, .control = -1, .status = -1,
                      .out = {.fd = -1}, .err = {.fd = -1}, .credit = WINDOW};
    return channels = made;
}

static void shut(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static void forget(Channel *gone) {
    for (Channel **link = &channels; *link; link = &(*link)->next)
        if (*link == gone) {
            *link = gone->next;
            break;
        }
    connected -= gone->state == CONNECTED;
    if (gone->in == gone->out.fd) gone->in = -1;
    shut(&gone->in), shut(&gone->out.fd), shut(&gone->err.fd), shut(&gone->control), shut(&gone->status);
    free(gone->input.data), free(gone->out.tail.data), free(gone->err.tail.data);
    free(gone);
}

/* ---- output ---- */

static void keep_tail(Sink *sink, const char *data, size_t length) {
    if (length > sink->tail_room) {
        sink->dropped += length - sink->tail_room;
        data += length - sink->tail_room;
        length = sink->tail_room;
    }
    if (sink->tail.length + length > 2 * sink->tail_room) { /* seldom, so that a flood costs a copy per half */
        size_t too_many = sink->tail.length + length - sink->tail_room;
        sink->dropped += too_many;
        drop(&sink->tail, too_many);
    }
    add(&sink->tail, data, length);
}

static void trim_tail(Sink *sink) {
    if (sink->tail.length <= sink->tail_room) return;
    sink->dropped += sink->tail.length - sink->tail_room;
    drop(&sink->tail, sink->tail.length - sink->tail_room);
}

static void hear(Channel *one, Sink *sink, uint32_t type, const char *data, size_t length) {
    if (one->state == LEFT_BEHIND) return;
    if (one->flags & STREAMED) {
        send_frame(type, one->id, data, length);
        one->credit -= (int64_t)length;
        return;
    }
    size_t now = length < sink->head ? length : sink->head;
    if (now) send_frame(type, one->id, data, now);
    sink->head -= now;
    if (length > now) keep_tail(sink, data + now, length - now);
}

static size_t read_some(Channel *one, Sink *sink, uint32_t type, size_t most) { /* 0: no more for now, or ever */
    static char chunk[CHUNK];
    if (sink->fd < 0 || most == 0) return 0;
    ssize_t length = read(sink->fd, chunk, most < sizeof chunk ? most : sizeof chunk);
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (length > 0) {
        hear(one, sink, type, chunk, (size_t)length);
        return (size_t)length;
    }
    if (one->state == CONNECTED) send_frame(END, one->id, NULL, 0); /* the other direction may go on */
    if (one->in == sink->fd) one->in = -1; /* a terminal's */
    shut(&sink->fd);
    return 0;
}

static int is_broke(const Channel *one) { return one->flags & STREAMED && one->state != LEFT_BEHIND && one->credit <= 0; }

static void read_once(Channel *one, Sink *sink, uint32_t type) {
    if (is_broke(one)) return;
    read_some(one, sink, type, one->flags & STREAMED && one->credit < CHUNK ? (size_t)one->credit : CHUNK);
}

/* Reads what is there by now, whether there is credit for it or not, and nothing that a process that lives on may add:
 * what was written before a command ended comes before the word that it did. */
static void drain_one(Channel *one, Sink *sink, uint32_t type) {
    int there = TERMINAL_BYTES; /* a terminal does not know what it still holds */
    if (sink->fd >= 0 && !(one->flags & WITH_PTY) && ioctl(sink->fd, FIONREAD, &there) < 0) return;
    for (size_t left = (size_t)there, now; left > 0 && (now = read_some(one, sink, type, left)) > 0;) left -= now;
}

static void drain(Channel *one) {
    drain_one(one, &one->out, OUT);
    drain_one(one, &one->err, ERR);
}

static void send_tail(const Channel *one, const Sink *sink, uint32_t type) {
    for (size_t done = 0, now; done < sink->tail.length; done += now) {
        now = sink->tail.length - done < CHUNK ? sink->tail.length - done : CHUNK;
        send_frame(type, one->id, sink->tail.data + done, now);
    }
}

static void finish(Channel *one) {
    char payload[32];
    drain(one);
    trim_tail(&one->out), trim_tail(&one->err);
    send_tail(one, &one->out, OUT), send_tail(one, &one->err, ERR);
    put32(payload, (uint32_t)one->kind);
    put32(payload + 4, (uint32_t)one->value);
    put32(payload + 8, oom_kills() > one->oom_before);
    put32(payload + 12, refused_forks() > one->forks_before);
    put64(payload + 16, one->out.dropped);
    put64(payload + 24, one->err.dropped);
    send_frame(EXIT, one->id, payload, sizeof payload);
    /* What it left in the background may go on writing; nobody hears it, and nobody dies of a closed pipe. */
    one->state = LEFT_BEHIND;
    drop(&one->out.tail, one->out.tail.length), drop(&one->err.tail, one->err.tail.length);
    if (one->flags & WITH_PTY) one->in = -1, shut(&one->out.fd);
    shut(&one->in);
    if (one->status < 0) forget(one);
}

static void refuse(Channel *one, uint32_t what, int reason) {
    one->kind = NOT_STARTED;
    one->value = (int32_t)(what << 16 | (uint32_t)reason);
    finish(one);
}

/* ---- starting ---- */

static char **words(const char **data, const char *end, uint32_t count) {
    if (count > (size_t)(end - *data)) die("a malformed command");
    char **list = calloc((size_t)count + 1, sizeof *list);
    if (!list) die("no memory");
    for (uint32_t i = 0; i < count; i++) {
        if (*data >= end) die("a malformed command");
        list[i] = (char *)*data;
        *data += strlen(*data) + 1;
    }
    return list;
}

static int open_terminal(Launch *launch, int rows, int columns) {
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0) return -1;
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
    ioctl(master, TIOCSWINSZ, &size);
    char name[64];
    if (ptsname_r(master, name, sizeof name) != 0) return -1;
    launch->in = launch->out = launch->err = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    return launch->in < 0 ? -1 : master;
}

static int connect_streams(Channel *one, Launch *launch, int rows, int columns) {
    int ends[2];
    if (one->flags & WITH_PTY) {
        if ((one->out.fd = open_terminal(launch, rows, columns)) < 0) return -1;
        one->in = one->out.fd;
        nonblocking(one->out.fd);
        return 0;
    }
    if (one->flags & WITH_INPUT) {
        close_on_exec_pipe(ends);
        launch->in = ends[0], one->in = ends[1];
    } else {
        launch->in = open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
    close_on_exec_pipe(ends);
    one->out.fd = ends[0], launch->out = ends[1];
    close_on_exec_pipe(ends);
    one->err.fd = ends[0], launch->err = ends[1];
    if (one->flags & WITH_CONTROL) {
        close_on_exec_pipe(ends);
        one->control = ends[0], launch->control = ends[1];
        if (launch->control < 0) return -1;
        nonblocking(one->control);
    }
    if (launch->in < 0 || launch->out < 0 || launch->err < 0) return -1;
    nonblocking(one->out.fd), nonblocking(one->err.fd);
    if (one->in >= 0) nonblocking(one->in);
    return 0;
}

void start_command(uint32_t id, const char *data, size_t length) {
    if (length < 41 || data[length - 1] != 0) die("a malformed command");
    Channel *one = new_channel(id, RUNNING);
    one->flags = get32(data);
    uint64_t timeout_us = get64(data + 4);
    one->out.head = one->err.head = get64(data + 12);
    one->out.tail_room = one->err.tail_room = get64(data + 20);
    uint32_t shape = get32(data + 28), arguments = get32(data + 32), variables = get32(data + 36);
    const char *text = data + 40, *end = data + length;
    Launch launch = {.in = -1, .out = -1, .err = -1, .control = -1, .pty = (one->flags & WITH_PTY) != 0,
                     .isolated = getpid() == 1};
    launch.directory = text;
    text += strlen(text) + 1;
    launch.argv = words(&text, end, arguments);
    launch.env = words(&text, end, variables);
    launch.env_count = (int)variables;
    one->deadline = timeout_us ? now_us() + timeout_us : 0;
    one->oom_before = oom_kills(), one->forks_before = refused_forks();

    int status[2] = {-1, -1}, failed = 0;
    if (connect_streams(one, &launch, (int)(shape >> 16), (int)(shape & 0xffff)) < 0) failed = errno;
    close_on_exec_pipe(status);
    one->status = status[0], launch.status = status[1];
    if (!failed && status[0] < 0) failed = errno;
    if (!failed) {
        nonblocking(one->status);
        one->keeper = fork();
        if (one->keeper == 0) keep(&launch);
        if (one->keeper < 0) failed = errno;
    }
    if (launch.err == launch.in) launch.out = launch.err = -1;
    shut(&launch.in), shut(&launch.out), shut(&launch.err), shut(&launch.control), shut(&launch.status);
    free(launch.argv), free(launch.env);
    if (failed) {
        shut(&one->status);
        refuse(one, FORK_FAILED, failed);
    }
}

/* ---- input ---- */

static void write_input(Channel *one) {
    while (one->in >= 0 && one->input.length > 0) {
        ssize_t sent = write(one->in, one->input.data, one->input.length);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) return;
        char amount[4];
        if (sent < 0) { /* it does not read: its own business */
            put32(amount, (uint32_t)one->input.length);
            drop(&one->input, one->input.length);
            if (one->in != one->out.fd) shut(&one->in);
            if (one->state == CONNECTED) shut(&one->out.fd);
        } else {
            put32(amount, (uint32_t)sent);
            drop(&one->input, (size_t)sent);
        }
        send_frame(WRITTEN, one->id, amount, sizeof amount);
    }
    if (one->in < 0) drop(&one->input, one->input.length);
    if (one->input_ends && one->input.length == 0 && one->in >= 0) {
        one->input_ends = 0;
        if (one->state == CONNECTED) shutdown(one->in, SHUT_WR);
        if (!(one->flags & WITH_PTY)) shut(&one->in);
    }
}

static int is_over(Channel *one) { /* of a connection; then it is forgotten */
    if (one->state != CONNECTED || one->out.fd >= 0 || one->in >= 0) return 0;
    send_done(one->id, 0, "");
    forget(one);
    return 1;
}

void take_input(uint32_t id, const char *data, size_t length) {
    Channel *one = channel_of(id);
    if (!one) return;
    add(&one->input, data, length);
    write_input(one);
    is_over(one);
}

void take_input_end(uint32_t id) {
    Channel *one = channel_of(id);
    if (!one) return;
    one->input_ends = 1;
    write_input(one);
    is_over(one);
}

void take_credit(uint32_t id, uint32_t amount) {
    Channel *one = channel_of(id);
    if (one) one->credit += amount;
}

void resize(uint32_t id, int rows, int columns) {
    Channel *one = channel_of(id);
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
    if (one && one->flags & WITH_PTY && one->out.fd >= 0) ioctl(one->out.fd, TIOCSWINSZ, &size);
}

/* ---- the end of a command ---- */

static void kick(Channel *one) {
    /* A bomb may outrun us: then everything goes at once, which the kernel does in one step. Only the first process of a
     * namespace may say so: elsewhere it is everybody. */
    if (kill_tree(one->keeper) >= 0 && ++one->kicks > KICKS_BEFORE_SWEEP && getpid() == 1) kill(-1, SIGKILL);
    one->next_kick = now_us() + KICK_US;
}

void kill_command(uint32_t id) {
    Channel *one = channels;
    while (one && one->id != id) one = one->next;
    if (!one) return;
    if (one->state == CONNECTED || one->state == LISTENING) {
        forget(one);
    } else if (one->state == RUNNING || (one->state == LEFT_BEHIND && !one->next_kick)) {
        if (one->state == RUNNING) one->state = KILLING;
        kick(one);
    }
}

static int hear_status(Channel *one) { /* 0 if that was its end */
    Report report;
    for (;;) {
        ssize_t length = read(one->status, &report, sizeof report);
        if (length < 0 && (errno == EAGAIN || errno == EINTR)) return 1;
        if (length != sizeof report) break;
        one->all_gone |= report.what == ALL_GONE || report.what == FORK_FAILED;
        if (report.what == ALL_GONE) continue;
        if (one->state == LEFT_BEHIND || one->has_ended) continue;
        if (report.what != HAS_ENDED) { /* its own exit that follows says nothing new */
            one->kind = NOT_STARTED;
            one->value = (int32_t)(report.what << 16 | (uint32_t)report.value);
        } else if (one->kind != NOT_STARTED) {
            int status = report.value;
            one->kind = WIFSIGNALED(status) ? SIGNALLED : ENDED;
            one->value = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
        }
        one->has_ended = one->kind != NOT_STARTED || report.what != HAS_ENDED;
    }
    shut(&one->status); /* the keeper ended, and if it says so with it the last process of the command */
    int is_to_die = one->state == KILLING || one->next_kick || !one->has_ended;
    /* Somebody killed the keeper: nobody knows any more whose its tree is. */
    if (is_to_die && !one->all_gone && getpid() == 1) kill(-1, SIGKILL);
    if (one->state == LEFT_BEHIND) {
        forget(one);
        return 0;
    }
    if (one->state == KILLING) {
        one->kind = TIMED_OUT;
    } else if (!one->has_ended) {
        one->kind = SIGNALLED, one->value = SIGKILL;
    }
    finish(one);
    return 0;
}

static void settle(Channel *one) { /* the command itself has ended; its streams may be held open by what it left */
    if (one->state != RUNNING || !one->has_ended) return;
    int open = one->out.fd >= 0 || one->err.fd >= 0;
    if (one->flags & (STREAMED | WITH_PTY)) open = 0;
    if (!open || (one->linger_until && now_us() >= one->linger_until)) {
        finish(one);
    } else if (!one->linger_until) {
        one->linger_until = now_us() + LINGER_US;
    }
}

static void hear_control(Channel *one) {
    char chunk[4096];
    drain(one); /* what the command wrote before it spoke here comes first */
    ssize_t length = read(one->control, chunk, sizeof chunk);
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (length <= 0)
        shut(&one->control);
    else if (one->state != LEFT_BEHIND)
        send_frame(CONTROL, one->id, chunk, (size_t)length);
}

/* ---- connections ---- */

void listen_on(uint32_t id, int port) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), yes = 1;
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (fd < 0 || bind(fd, (struct sockaddr *)&here, sizeof here) < 0 || listen(fd, 64) < 0) {
        int reason = errno;
        if (fd >= 0) close(fd);
        send_done(id, reason, strerror(reason));
        return;
    }
    new_channel(id, LISTENING)->control = fd;
    send_done(id, 0, "");
}

static void accept_one(Channel *one) {
    int fd = accept4(one->control, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    int again = fcntl(fd, F_DUPFD_CLOEXEC, 0); /* so that each direction ends by itself */
    if (again < 0) {
        close(fd);
        return;
    }
    Channel *made = new_channel(TUNNEL | (++connections & (TUNNEL - 1)), CONNECTED);
    connected++;
    made->flags = STREAMED;
    made->out.fd = fd, made->in = again;
    char listener[4];
    put32(listener, one->id);
    send_frame(ACCEPT, made->id, listener, sizeof listener);
}

/* ---- the loop's side ---- */

static void want(struct pollfd *polls, int room, int *count, int fd, short events) {
    if (fd < 0 || *count >= room) return;
    for (int i = 0; i < *count; i++)
        if (polls[i].fd == fd) {
            polls[i].events |= events;
            return;
        }
    polls[(*count)++] = (struct pollfd){.fd = fd, .events = events};
}

int watch(struct pollfd *polls, int room) {
    int count = 0, full = queued() > QUEUE_LIMIT;
    for (Channel *one = channels; one; one = one->next) {
        int silent = full && one->state != LEFT_BEHIND;
        int speaks = one->state == LISTENING ? connected < MOST_CONNECTIONS && !full : !silent;
        if (is_broke(one)) silent = 1;
        if (!silent) want(polls, room, &count, one->out.fd, POLLIN);
        if (!silent) want(polls, room, &count, one->err.fd, POLLIN);
        if (speaks) want(polls, room, &count, one->control, POLLIN);
        want(polls, room, &count, one->status, POLLIN);
        if (one->input.length > 0) want(polls, room, &count, one->in, POLLOUT);
    }
    return count;
}

static int ready(const struct pollfd *polls, int count, int fd) {
    for (int i = 0; fd >= 0 && i < count; i++)
        if (polls[i].fd == fd) return polls[i].revents;
    return 0;
}

void serve(const struct pollfd *polls, int count) {
    for (Channel *one = channels, *next; one; one = next) {
        next = one->next;
        if (ready(polls, count, one->in) & (POLLOUT | POLLERR | POLLHUP)) write_input(one);
        if (ready(polls, count, one->out.fd) & (POLLIN | POLLERR | POLLHUP)) read_once(one, &one->out, OUT);
        if (ready(polls, count, one->err.fd) & (POLLIN | POLLERR | POLLHUP)) read_once(one, &one->err, ERR);
        if (one->state == CONNECTED) {
            is_over(one);
            continue;
        }
        if (ready(polls, count, one->control)) {
            if (one->state == LISTENING)
                accept_one(one);
            else
                hear_control(one);
        }
        if (!ready(polls, count, one->status) || hear_status(one)) settle(one);
    }
}

int64_t next_deadline_us(void) {
    uint64_t first = UINT64_MAX;
    for (Channel *one = channels; one; one = one->next) {
        if (one->state == RUNNING && one->deadline && one->deadline < first) first = one->deadline;
        if (one->state == RUNNING && one->linger_until && one->linger_until < first) first = one->linger_until;
        if (one->next_kick && one->next_kick < first) first = one->next_kick;
    }
    return first == UINT64_MAX ? -1 : (int64_t)first;
}

void on_time(void) {
    uint64_t now = now_us();
    for (Channel *one = channels, *next; one; one = next) {
        next = one->next;
        if (one->state == RUNNING && one->has_ended) {
            settle(one);
        } else if (one->state == RUNNING && one->deadline && now >= one->deadline) {
            one->state = KILLING;
            kick(one);
        } else if (one->next_kick && now >= one->next_kick) {
            kick(one);
        }
    }
}

void reap(void) {
    while (waitpid(-1, NULL, WNOHANG) > 0) {
    }
}
