/* Which processes a command has, wherever they went, and what the kernel's counters say of the whole sandbox. */
#include "supervisor.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    pid_t pid, parent;
    char state;
    char ours;
} Process;

static int read_stat(const char *name, Process *process) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%s/stat", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0) return 0;
    text[length] = 0;
    char *rest = strrchr(text, ')'); /* the name in parentheses may hold anything */
    if (!rest) return 0;
    int parent;
    if (sscanf(rest + 1, " %c %d", &process->state, &parent) != 2) return 0;
    process->pid = (pid_t)atoi(name);
    process->parent = parent;
    process->ours = 0;
    return 1;
}

int kill_tree(pid_t keeper) {
    static Process *found;
    static size_t room;
    size_t count = 0;
    DIR *folder = opendir("/proc");
    if (!folder) return -1;
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (!isdigit((unsigned char)entry->d_name[0])) continue;
        if (count == room) {
            room = room ? 2 * room : 256;
            found = realloc(found, room * sizeof *found);
            if (!found) die("no memory");
        }
        if (read_stat(entry->d_name, &found[count])) count++;
    }
    closedir(folder);
    int keeper_lives = 0, alive = 0;
    for (size_t i = 0; i < count; i++)
        if (found[i].pid == keeper && found[i].state != 'Z') keeper_lives = found[i].ours = 1;
    if (!keeper_lives) return -1;
    for (int changed = 1; changed;) {
        changed = 0;
        for (size_t i = 0; i < count; i++)
            for (size_t j = 0; !found[i].ours && j < count; j++)
                if (found[j].ours && found[j].pid == found[i].parent) changed = found[i].ours = 1;
    }
    for (size_t i = 0; i < count; i++)
        if (found[i].ours && found[i].pid != keeper && found[i].state != 'Z' && found[i].state != 'X') {
            kill(found[i].pid, SIGKILL);
            alive++;
        }
    return alive;
}

static int memory_counter = -1, process_counter = -1;

static int first_of(const char *one, const char *other) {
    int fd = open(one, O_RDONLY | O_CLOEXEC);
    return fd >= 0 ? fd : open(other, O_RDONLY | O_CLOEXEC);
}

void open_counters(void) { /* cgroup v2, else v1 */
    memory_counter = first_of("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control");
    process_counter = first_of("/sys/fs/cgroup/pids.events", "/sys/fs/cgroup/pids/pids.events");
}

static uint64_t counter(int fd, const char *name) {
    char text[512];
    ssize_t length = fd < 0 ? -1 : pread(fd, text, sizeof text - 1, 0);
    if (length <= 0) return 0;
    text[length] = 0;
    for (char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        size_t width = strlen(name);
        if (strncmp(line, name, width) == 0 && line[width] == ' ') return strtoull(line + width, NULL, 10);
    }
    return 0;
}

uint64_t oom_kills(void) { return counter(memory_counter, "oom_kill"); }
uint64_t refused_forks(void) { return counter(process_counter, "max"); }
