/* Files in and out, as entries: type (u8), mode (u32), modification time (i64, ns), length of the path (u32), size
 * (u64), path, bytes. Types: f a file, d a folder, l a link (its bytes are the target). What came out as it is can go in
 * again below another folder. No link is ever followed, wherever in a path it stands. */

#include "supervisor.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ENTRY = 25, DEEPEST = 200, AS_BEFORE = -1, LONGEST = 1 << 16 };
#define BILLION INT64_C(1000000000)
#define FOLDER (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

static int plain(int reason) { return reason == ELOOP || reason == ENOTDIR || reason == EISDIR ? NOT_PLAIN : reason; }

static char kept_path[PATH_MAX]; /* thousands of files often come to one folder */
static int kept = -1;

static void forget_folder(void) {
    if (kept >= 0) close(kept);
    kept = -1;
}

/* Returns a descriptor of the folder that holds the last step of an absolute path, or -1 with errno set. With `make` it
 * is the kept one, else the caller's to close. */
static int enter(const char *path, int make, const char **last) {
    const char *slash = strrchr(path, '/');
    size_t width = slash ? (size_t)(slash - path) : 0;
    *last = slash ? slash + 1 : path;
    if (width >= sizeof kept_path) return errno = ENAMETOOLONG, -1;
    if (kept >= 0 && make && strlen(kept_path) == width && memcmp(kept_path, path, width) == 0)
        return kept;
    int here = open("/", FOLDER);
    char step[NAME_MAX + 1];
    for (const char *from = path; here >= 0 && from < path + width;) {
        from += strspn(from, "/");
        size_t length = strcspn(from, "/");
        if (from + length > path + width) break;
        if (length > NAME_MAX) {
            close(here);
            return errno = ENAMETOOLONG, -1;
        }
        memcpy(step, from, length), step[length] = 0;
        int next = openat(here, step, FOLDER);
        if (next < 0 && errno == ENOENT && make && mkdirat(here, step, 0755) == 0) next = openat(here, step, FOLDER);
        int reason = errno;
        close(here);
        errno = reason;
        here = next;
        from += length;
    }
    if (here >= 0 && make) {
        forget_folder();
        kept = here;
        memcpy(kept_path, path, width), kept_path[width] = 0;
    }
    return here;
}

/* ---- out ---- */

typedef struct {
    uint32_t channel, flags, entries_left;
    uint64_t bytes_left;
    char path[PATH_MAX];
    int code;
} Walk;

static int fail(Walk *walk, int code) {
    if (!walk->code) walk->code = code;
    return -1;
}

static struct { /* small files share a frame: each costs the other side more than its bytes do */
    char data[2 * CHUNK];
    size_t length;
} batch;

static void send_batch(const Walk *walk) {
    if (batch.length >= CHUNK)
        send_large_frame(ENTRIES, walk->channel, batch.data, batch.length);
    else if (batch.length)
        send_frame(ENTRIES, walk->channel, batch.data, batch.length);
    batch.length = 0;
}

static void send_part(const Walk *walk, const char *data, size_t length) { /* much less than a batch */
    if (batch.length + length > sizeof batch.data) send_batch(walk);
    memcpy(batch.data + batch.length, data, length);
    batch.length += length;
}

static void send_head(Walk *walk, char type, const struct stat *info, const char *path, uint64_t size) {
    char head[ENTRY];
    int64_t time_ns;
    if (__builtin_mul_overflow((int64_t)info->st_mtim.tv_sec, BILLION, &time_ns) ||
        __builtin_add_overflow(time_ns, (int64_t)info->st_mtim.tv_nsec, &time_ns))
        time_ns = 0; /* beyond 2262: anybody may set any time */
    head[0] = type;
    put32(head + 1, info->st_mode & 07777);
    put64(head + 5, (uint64_t)time_ns);
    put32(head + 13, (uint32_t)strlen(path));
    put64(head + 17, size);
    send_part(walk, head, ENTRY);
    send_part(walk, path, strlen(path));
}

static int count(Walk *walk, uint64_t size) {
    if (walk->entries_left-- == 0) return walk->entries_left = 0, fail(walk, TOO_MANY);
    if (size > walk->bytes_left) return fail(walk, TOO_BIG);
    walk->bytes_left -= size;
    return 0;
}

static int send_file(Walk *walk, int fd, const struct stat *info) {
    uint64_t left = (uint64_t)info->st_size;
    if (count(walk, left) < 0) return -1;
    send_head(walk, 'f', info, walk->path, left);
    while (left > 0) {
        if (batch.length == sizeof batch.data) send_batch(walk);
        size_t room = sizeof batch.data - batch.length, most = left < room ? (size_t)left : room;
        ssize_t length = read(fd, batch.data + batch.length, most);
        if (length < 0 && errno == EINTR) continue;
        if (length < 0) return fail(walk, errno);
        if (length == 0) memset(batch.data + batch.length, 0, most), length = (ssize_t)most; /* it shrank meanwhile */
        batch.length += (size_t)length;
        left -= (uint64_t)length;
    }
    return 0;
}

static int send_folder(Walk *walk, int fd, int depth);

#define READABLE (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)

static int send_entry(Walk *walk, int folder, const struct dirent *entry, int depth) {
    const char *name = entry->d_name;
    struct stat info;
    int open_file = entry->d_type == DT_REG ? openat(folder, name, READABLE) : -1;
    if (open_file >= 0) { /* as nearly all are */
        int result = fstat(open_file, &info) == 0 && S_ISREG(info.st_mode) ? send_file(walk, open_file, &info) : 0;
        close(open_file);
        return result;
    }
    if (fstatat(folder, name, &info, AT_SYMLINK_NOFOLLOW) < 0) return errno == ENOENT ? 0 : fail(walk, errno);
    if (S_ISLNK(info.st_mode) && walk->flags & WITH_METADATA) {
        char target[PATH_MAX];
        ssize_t length = readlinkat(folder, name, target, sizeof target);
        if (length < 0) return fail(walk, errno);
        if (count(walk, (uint64_t)length) < 0) return -1;
        send_head(walk, 'l', &info, walk->path, (uint64_t)length);
        send_part(walk, target, (size_t)length);
        return 0;
    }
    if (S_ISDIR(info.st_mode)) {
        if (depth >= DEEPEST) return fail(walk, TOO_DEEP);
        if (count(walk, 0) < 0) return -1;
        if (walk->flags & WITH_METADATA) send_head(walk, 'd', &info, walk->path, 0);
        int locked = (info.st_mode & 0700) != 0700 && walk->flags & WITH_METADATA;
        if (locked) fchmodat(folder, name, (info.st_mode & 07777) | 0700, 0);
        int fd = openat(folder, name, FOLDER);
        int result = fd < 0 ? fail(walk, plain(errno)) : send_folder(walk, fd, depth + 1);
        if (locked) fchmodat(folder, name, info.st_mode & 07777, 0);
        return result;
    }
    if (!S_ISREG(info.st_mode)) return 0;
    int locked = !(info.st_mode & 0400) && walk->flags & WITH_METADATA;
    if (locked) fchmodat(folder, name, (info.st_mode & 07777) | 0400, 0);
    int fd = openat(folder, name, READABLE);
    int reason = errno;
    if (locked) fchmodat(folder, name, info.st_mode & 07777, 0);
    if (fd < 0) return reason == ENOENT || reason == ELOOP ? 0 : fail(walk, reason);
    mode_t mode = info.st_mode;
    if (fstat(fd, &info) < 0 || !S_ISREG(info.st_mode)) {
        close(fd);
        return 0;
    }
    if (locked) info.st_mode = mode;
    int result = send_file(walk, fd, &info);
    close(fd);
    return result;
}

static int send_folder(Walk *walk, int fd, int depth) { /* takes the descriptor */
    DIR *folder = fdopendir(fd);
    if (!folder) {
        close(fd);
        return fail(walk, errno);
    }
    size_t width = strlen(walk->path);
    int result = 0;
    for (struct dirent *entry; result == 0 && (entry = readdir(folder));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        int length = snprintf(walk->path + width, sizeof walk->path - width, "%s%s", width ? "/" : "", entry->d_name);
        if (length < 0 || (size_t)length >= sizeof walk->path - width)
            result = fail(walk, TOO_DEEP);
        else
            result = send_entry(walk, dirfd(folder), entry, depth);
        if (result == 0) walk->path[width] = 0;
    }
    closedir(folder);
    return result;
}

void get_files(uint32_t channel, const char *data, size_t length) {
    static Walk walk;
    if (length < 17 || data[length - 1] != 0) die("a malformed request for files");
    walk = (Walk){.channel = channel, .flags = get32(data), .entries_left = get32(data + 4), .bytes_left = get64(data + 8)};
    const char *path = data + 16, *last;
    struct stat info;
    int folder = enter(path, 0, &last);
    if (folder < 0) {
        send_done(channel, plain(errno), strerror(errno));
        return;
    }
    int fd = openat(folder, *last ? last : ".", READABLE | O_NOCTTY);
    int reason = errno;
    close(folder);
    if (fd < 0 || fstat(fd, &info) < 0)
        fail(&walk, reason == ENXIO ? NOT_PLAIN : plain(reason));
    else if (S_ISREG(info.st_mode))
        send_file(&walk, fd, &info), close(fd);
    else if (S_ISDIR(info.st_mode) && !(walk.flags & FILE_ONLY)) {
        send_head(&walk, 'd', &info, "", 0);
        send_folder(&walk, fd, 0);
    } else
        fail(&walk, NOT_PLAIN), close(fd);
    send_batch(&walk);
    send_done(channel, walk.code, walk.code && walk.code < NOT_PLAIN ? strerror(walk.code) : walk.path);
    flush_all();
}

/* ---- in ---- */

static struct {
    uint32_t channel;
    Buffer head;
    char path[PATH_MAX], root[PATH_MAX], temporary[64], last[NAME_MAX + 1];
    const char *made; /* the name that the file has until it is whole */
    uint32_t flags;
    int folder, fd, mode, code;
    int64_t time_ns;
    uint64_t left;
    char type;
    Buffer folders; /* their entries, whose modes and times are set once all is in them */
} put = {.folder = -1, .fd = -1};

static void give_up(int code) {
    if (!put.code) put.code = code;
}

static void set_times(int folder, const char *name, int64_t time_ns) { /* no name: of the descriptor itself */
    int64_t seconds = time_ns / BILLION, ns = time_ns % BILLION;
    if (ns < 0) seconds--, ns += BILLION; /* before 1970 */
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {seconds, ns}};
    if (time_ns == 0) return;
    int failed = name ? utimensat(folder, name, times, AT_SYMLINK_NOFOLLOW) : futimens(folder, times);
    if (failed && errno != EPERM) give_up(errno);
}

static int create(const char *name, mode_t mode) {
    put.made = name;
    put.fd = openat(put.folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    return put.fd;
}

static void begin_file(void) {
    struct stat old;
    static unsigned serial;
    /* Where nothing has run yet, nobody can see half a file. */
    if (put.flags & FRESH && put.mode != AS_BEFORE && (create(put.last, (mode_t)put.mode & 0777) >= 0 || errno != EEXIST)) {
        if (put.fd < 0) give_up(errno);
        return;
    }
    int there = fstatat(put.folder, put.last, &old, AT_SYMLINK_NOFOLLOW) == 0;
    if (there && S_ISDIR(old.st_mode)) {
        give_up(NOT_PLAIN);
        return;
    }
    if (put.mode == AS_BEFORE) put.mode = 0644 | (there && S_ISREG(old.st_mode) ? (int)(old.st_mode & 0111) : 0);
    do {
        snprintf(put.temporary, sizeof put.temporary, ".agentgym-%u", serial++);
    } while (create(put.temporary, 0600) < 0 && errno == EEXIST);
    if (put.fd < 0) give_up(errno);
}

static void end_file(void) {
    if (put.fd < 0) return;
    int is_named = put.made == put.last, is_special = (put.mode & 07000) != 0;
    if (!put.code && (!is_named || is_special) && fchmod(put.fd, (mode_t)put.mode) < 0) give_up(errno);
    if (!put.code) set_times(put.fd, NULL, put.time_ns);
    close(put.fd), put.fd = -1;
    if (!put.code && !is_named && renameat(put.folder, put.made, put.folder, put.last) < 0) give_up(plain(errno));
    if (put.code) unlinkat(put.folder, put.made, 0);
}

static void make_link(const char *target) {
    unlinkat(put.folder, put.last, 0);
    if (symlinkat(target, put.folder, put.last) < 0) give_up(plain(errno));
    set_times(put.folder, put.last, put.time_ns);
}

static void begin_entry(void) {
    const char *last;
    put.folder = enter(put.path, 1, &last);
    if (put.folder < 0) {
        give_up(plain(errno));
        return;
    }
    snprintf(put.last, sizeof put.last, "%s", last);
    if (strlen(last) > NAME_MAX) {
        give_up(ENAMETOOLONG);
        return;
    }
    if (put.type == 'f') begin_file();
    if (put.type == 'd') {
        if (mkdirat(put.folder, put.last, 0755) < 0 && errno != EEXIST) give_up(plain(errno));
        char head[12];
        put32(head, (uint32_t)put.mode), put64(head + 4, (uint64_t)put.time_ns);
        add(&put.folders, head, sizeof head);
        add(&put.folders, put.path, sizeof put.path);
    }
}

static void settle_folders(void) { /* the deepest first: what is locked can no more be entered */
    enum { RECORD = 12 + PATH_MAX };
    for (size_t end = put.folders.length; end >= RECORD; end -= RECORD) {
        const char *record = put.folders.data + end - RECORD, *last;
        int folder = enter(record + 12, 0, &last);
        if (folder < 0) continue; /* gone again already */
        set_times(folder, last, (int64_t)get64(record + 4));
        if (fchmodat(folder, last, (mode_t)get32(record), 0) < 0 && errno != ENOENT && errno != EPERM) give_up(errno);
        close(folder);
    }
    drop(&put.folders, put.folders.length);
}

static void end_entry(void) {
    if (put.type == 'f') end_file();
}

void put_begin(uint32_t channel, const char *data, size_t length) {
    if (length < 5 || length - 4 > sizeof put.root || data[length - 1] != 0) die("a malformed request to write");
    put.flags = get32(data);
    memcpy(put.root, data + 4, length - 4);
    put.channel = channel, put.code = 0, put.left = 0, put.type = 0;
    drop(&put.head, put.head.length);
    forget_folder();
}

/* Takes what it can of the next entry; 0 if more bytes are needed. */
static size_t take(const char *data, size_t length) {
    if (put.type == 'f' && put.left > 0) {
        size_t now = length < put.left ? length : (size_t)put.left;
        for (size_t done = 0; !put.code && done < now;) {
            ssize_t sent = write(put.fd, data + done, now - done);
            if (sent < 0 && errno != EINTR) give_up(errno);
            if (sent > 0) done += (size_t)sent;
        }
        put.left -= now;
        if (put.left == 0) end_entry();
        return now;
    }
    if (length < ENTRY) return 0;
    uint32_t width = get32(data + 13);
    uint64_t size = get64(data + 17);
    size_t whole = ENTRY + width + (data[0] == 'l' ? (size_t)size : 0);
    size_t root = strlen(put.root);
    if (width > LONGEST || (data[0] == 'l' && size > LONGEST)) die("a malformed entry");
    if (length < whole) return 0;
    /* What was made step by step may have a longer path than can be told at once: no reason to end. */
    if (root + (root && width) + width >= sizeof put.path || (data[0] == 'l' && size >= PATH_MAX)) give_up(ENAMETOOLONG);
    if (put.code) { /* only the rest of the stream is to be got through */
        put.type = data[0], put.left = data[0] == 'f' ? size : 0;
        return whole;
    }
    put.type = data[0];
    put.mode = (int)get32(data + 1);
    put.time_ns = (int64_t)get64(data + 5);
    put.left = put.type == 'f' ? size : 0;
    snprintf(put.path, sizeof put.path, "%s%s%.*s", put.root, root && width ? "/" : "", (int)width, data + ENTRY);
    begin_entry();
    if (put.type == 'l' && !put.code) {
        char target[PATH_MAX];
        memcpy(target, data + ENTRY + width, (size_t)size), target[size] = 0;
        make_link(target);
    }
    if (put.left == 0) end_entry();
    return whole;
}

static size_t take_all(const char *data, size_t length) {
    size_t done = 0;
    for (size_t now; done < length && (now = take(data + done, length - done)) > 0;) done += now;
    return done;
}

void put_data(uint32_t channel, const char *data, size_t length) {
    if (channel != put.channel) die("two writers at once");
    if (put.head.length > 0) { /* the beginning of an entry whose rest is in what came now */
        add(&put.head, data, length);
        drop(&put.head, take_all(put.head.data, put.head.length));
    } else {
        size_t done = take_all(data, length);
        add(&put.head, data + done, length - done);
    }
}

void put_end(uint32_t channel) {
    if (put.left > 0 || put.head.length > 0) give_up(EIO);
    end_entry();
    settle_folders();
    forget_folder();
    send_done(channel, put.code, put.code ? (put.code < NOT_PLAIN ? strerror(put.code) : put.path) : "");
}
