/* Frames to the owner, and the small things that every part needs. */
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static Buffer queue;

void die(const char *what) {
    dprintf(2, "agentgym supervisor: %s: %s\n", what, strerror(errno));
    _exit(70);
}

void reserve(Buffer *buffer, size_t length) {
    if (buffer->length + length <= buffer->room) return;
    size_t room = buffer->room ? buffer->room : 4096;
    while (room < buffer->length + length) room *= 2;
    char *grown = realloc(buffer->data, room);
    if (!grown) die("no memory");
    buffer->data = grown;
    buffer->room = room;
}

void add(Buffer *buffer, const void *data, size_t length) {
    if (length == 0) return;
    reserve(buffer, length);
    memcpy(buffer->data + buffer->length, data, length);
    buffer->length += length;
}

void drop(Buffer *buffer, size_t length) {
    if (length < buffer->length) memmove(buffer->data, buffer->data + length, buffer->length - length);
    buffer->length -= length;
    if (buffer->length == 0 && buffer->room > 2 * CHUNK) {
        free(buffer->data);
        *buffer = (Buffer){0};
    }
}

uint32_t get32(const char *data) { uint32_t value; memcpy(&value, data, 4); return value; }
uint64_t get64(const char *data) { uint64_t value; memcpy(&value, data, 8); return value; }
void put32(char *data, uint32_t value) { memcpy(data, &value, 4); }
void put64(char *data, uint64_t value) { memcpy(data, &value, 8); }

static void add_header(uint32_t type, uint32_t channel, size_t length) {
    char header[HEADER];
    put32(header, (uint32_t)length);
    put32(header + 4, channel);
    put32(header + 8, type);
    add(&queue, header, HEADER);
}

void send_frame(uint32_t type, uint32_t channel, const void *data, size_t length) {
    add_header(type, channel, length);
    add(&queue, data, length);
}

void send_done(uint32_t channel, int code, const char *text) {
    char payload[512];
    size_t length = strnlen(text, sizeof payload - 4);
    put32(payload, (uint32_t)code);
    memcpy(payload + 4, text, length);
    send_frame(DONE, channel, payload, 4 + length);
}

size_t queued(void) { return queue.length; }

int flush_some(void) {
    size_t done = 0;
    while (done < queue.length) {
        ssize_t sent = write(1, queue.data + done, queue.length - done);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) break;
        if (sent < 0) return -1;
        done += (size_t)sent;
    }
    drop(&queue, done);
    return 0;
}

static void wait_for_room(void) {
    struct pollfd poll_out = {.fd = 1, .events = POLLOUT};
    poll(&poll_out, 1, 1000);
    if (poll_out.revents & (POLLERR | POLLHUP)) _exit(0);
}

void flush_all(void) {
    while (queue.length > 0) {
        if (flush_some() < 0) _exit(0);
        if (queue.length > 0) wait_for_room();
    }
}

void send_large_frame(uint32_t type, uint32_t channel, const void *data, size_t length) {
    add_header(type, channel, length);
    flush_all();
    for (size_t done = 0; done < length;) {
        ssize_t sent = write(1, (const char *)data + done, length - done);
        if (sent >= 0)
            done += (size_t)sent;
        else if (errno == EAGAIN)
            wait_for_room();
        else if (errno != EINTR)
            _exit(0);
    }
}

void nonblocking(int fd) {
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0) die("fcntl");
}

void close_on_exec_pipe(int ends[2]) {
    if (pipe2(ends, O_CLOEXEC) < 0) ends[0] = ends[1] = -1;
}

uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}
