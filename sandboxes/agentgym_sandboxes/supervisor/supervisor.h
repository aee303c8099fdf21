/* The process that runs first in every sandbox and does there what its owner asks for over two pipes.
 *
 * It is one static program: it needs no shell, no interpreter and no C library of the image. It runs as the
 * sandbox's only user and holds no privilege, so whatever it opens, the agent could have opened too.
 *
 * Both directions carry frames: length of the payload (u32), channel (u32), type (u32), payload; little-endian.
 * _messages.py holds the other side.
 */
#ifndef SUPERVISOR_H
#define SUPERVISOR_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { PROTOCOL = 2, HEADER = 12, MAX_FRAME = 4 << 20, CHUNK = 1 << 16, QUEUE_LIMIT = 1 << 18, WINDOW = 1 << 18 };

enum { /* what the owner asks */
    PING = 1, EXEC = 2, INPUT = 3, INPUT_END = 4, KILL = 5, RESIZE = 6, GET = 7, PUT = 8, PUT_DATA = 9, PUT_END = 10,
    CREDIT = 11, LISTEN = 12
};
enum { /* what the owner hears */
    HELLO = 64, OUT = 65, ERR = 66, CONTROL = 67, EXIT = 68, ENTRIES = 69, DONE = 70, ACCEPT = 71, END = 72, WRITTEN = 73
};
enum { WITH_INPUT = 1, WITH_PTY = 2, STREAMED = 4, WITH_CONTROL = 8 }; /* flags of EXEC */
enum { WITH_METADATA = 1, FILE_ONLY = 2 };                             /* flags of GET */
enum { FRESH = 1 };                                                    /* flags of PUT */
enum { ENDED = 0, SIGNALLED = 1, TIMED_OUT = 2, NOT_STARTED = 3 };     /* kinds of EXIT */
enum { NOT_PLAIN = 1001, TOO_MANY = 1002, TOO_BIG = 1003, TOO_DEEP = 1004 }; /* beside errno, in DONE */

typedef struct {
    char *data;
    size_t length, room;
} Buffer;

void reserve(Buffer *buffer, size_t length); /* room for so much more */
void add(Buffer *buffer, const void *data, size_t length);
void drop(Buffer *buffer, size_t length);

/* pipes.c */
void send_frame(uint32_t type, uint32_t channel, const void *data, size_t length);
void send_large_frame(uint32_t type, uint32_t channel, const void *data, size_t length); /* waits until it is gone */
void send_done(uint32_t channel, int code, const char *text);
void flush_all(void); /* waits until the owner has taken what is queued, down to a little */
int flush_some(void); /* -1 if the owner is gone */
size_t queued(void);
void close_on_exec_pipe(int ends[2]);
void nonblocking(int fd);
uint64_t now_us(void);
uint32_t get32(const char *data);
uint64_t get64(const char *data);
void put32(char *data, uint32_t value);
void put64(char *data, uint64_t value);
_Noreturn void die(const char *what);

/* commands.c */
struct pollfd;
void start_command(uint32_t channel, const char *data, size_t length);
void listen_on(uint32_t channel, int port);
void take_input(uint32_t channel, const char *data, size_t length);
void take_input_end(uint32_t channel);
void take_credit(uint32_t channel, uint32_t amount);
void resize(uint32_t channel, int rows, int columns);
void kill_command(uint32_t channel);
int watch(struct pollfd *polls, int room);
void serve(const struct pollfd *polls, int count);
int64_t next_deadline_us(void);
void on_time(void);
void reap(void);

/* tree.c */
int kill_tree(pid_t keeper); /* how many were alive; -1 if the keeper itself is gone */
void open_counters(void);
uint64_t oom_kills(void);
uint64_t refused_forks(void);

/* launch.c */
typedef struct {
    int in, out, err, control, status; /* the child's ends; -1 where there is none */
    int pty, isolated;
    const char *directory;
    char **argv;
    char **env;
    int env_count;
} Launch;
enum { FORK_FAILED = 1, ENTER_FAILED = 2, START_FAILED = 3, HAS_ENDED = 4, ALL_GONE = 5 };
typedef struct {
    uint32_t what;
    int32_t value;
} Report;
_Noreturn void keep(const Launch *launch); /* the keeper's whole life */

/* files.c */
void get_files(uint32_t channel, const char *data, size_t length);
void put_begin(uint32_t channel, const char *data, size_t length);
void put_data(uint32_t channel, const char *data, size_t length);
void put_end(uint32_t channel);

#endif
