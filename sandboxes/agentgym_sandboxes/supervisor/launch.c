/* A command's keeper: it starts the command, becomes the parent of whatever that leaves behind, and reports its end. */

#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CONTROL_FD = 3, STATUS_FD = 4, FIRST_FREE = 5, OUT_OF_THE_WAY = 16 };

static void report(uint32_t what, int32_t value) {
    Report message = {what, value};
    while (write(STATUS_FD, &message, sizeof message) < 0 && errno == EINTR) {
    }
}

static void place(int from, int to) {
    if (from >= 0 && dup2(from, to) < 0) _exit(70);
}

static void close_from(unsigned first) {
#ifdef SYS_close_range
    if (syscall(SYS_close_range, first, ~0u, 0) == 0) return;
#endif
    long most = sysconf(_SC_OPEN_MAX);
    for (long fd = first; fd < (most > 0 ? most : 4096); fd++) close((int)fd);
}

static void arrange(const Launch *launch) {
    int high[5] = {launch->in, launch->out, launch->err, launch->control, launch->status};
    for (int i = 0; i < 5; i++) {
        if (high[i] >= 0 && (high[i] = fcntl(high[i], F_DUPFD, OUT_OF_THE_WAY)) < 0) _exit(70);
    }
    for (int i = 0; i < 5; i++) place(high[i], i);
    if (high[3] < 0) close(CONTROL_FD);
    close_from(FIRST_FREE);
    fcntl(STATUS_FD, F_SETFD, FD_CLOEXEC);
}

#if defined(__x86_64__)
#define NATIVE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE AUDIT_ARCH_AARCH64
#else
#error "say here which audit architecture this is"
#endif
#define DENIED BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
#define ALLOWED BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IS(value, then, otherwise) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, then, otherwise)

/* Being of the same user, a command may not signal or trace the first process, but could starve it to death by resource
 * limits or the scheduler, and so pass off a crash as the machine's. */
static void spare_the_first_process(void) {
    enum { I386_PRLIMIT64 = 340, WITHOUT_X32 = 0xbfffffff };
    struct sock_filter program[] = {
        LOAD(arch),
        IS(NATIVE, 3, 0),
        LOAD(nr), /* another ABI: no limits for anybody but by its own old calls, which know no other process */
        IS(I386_PRLIMIT64, 10, 0),
        ALLOWED,
        LOAD(nr),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, WITHOUT_X32),
        IS(SYS_prlimit64, 4, 0),
        IS(SYS_sched_setscheduler, 3, 0),
        IS(SYS_sched_setaffinity, 2, 0),
        IS(SYS_sched_setattr, 1, 0),
        ALLOWED,
        LOAD(args[0]),
        IS(1, 0, 1),
        DENIED,
        ALLOWED,
    };
    struct sock_fprog whole = {.len = sizeof program / sizeof *program, .filter = program};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &whole);
}

_Noreturn static void become(const Launch *launch) {
    setsid();
    if (launch->pty) ioctl(0, TIOCSCTTY, 0);
    for (int number = 1; number < 65; number++) signal(number, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    umask(022);
    if (launch->isolated) spare_the_first_process();
    /* When memory runs out the kernel shall choose the command and not us. Its own file is ours to write only while we
     * are dumpable, which a program is again anyway once it is started. */
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    int badness = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (badness >= 0) {
        if (write(badness, "1000", 4) < 0) errno = 0;
        close(badness);
    }
    if (chdir(launch->directory) < 0) {
        report(ENTER_FAILED, errno);
        _exit(126);
    }
    for (int i = 0; i < launch->env_count; i++) putenv(launch->env[i]);
    execvp(launch->argv[0], launch->argv);
    int reason = errno;
    report(START_FAILED, reason);
    _exit(reason == ENOENT || reason == ENOTDIR ? 127 : 126);
}

void keep(const Launch *launch) {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    arrange(launch);
    pid_t child = fork();
    if (child == 0) become(launch);
    if (child < 0) {
        report(FORK_FAILED, errno);
        _exit(0);
    }
    for (int fd = 0; fd < STATUS_FD; fd++) close(fd);
    for (;;) {
        int status;
        pid_t ended = waitpid(-1, &status, 0);
        if (ended == child) report(HAS_ENDED, status);
        if (ended < 0 && errno != EINTR) {
            report(ALL_GONE, 0);
            _exit(0);
        }
    }
}
