/* The floor of isolation: run a command in fresh namespaces, on a writable overlay of a folder's files.
 *
 *   namespaces LOWER SCRATCH COMMAND [ARGUMENT...]
 */
#define _GNU_SOURCE
#include <err.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define AGENT 1000

static void must(int result, const char *what) {
    if (result == -1) err(125, "%s", what);
}

int main(int argc, char **argv) {
    char options[3 * PATH_MAX];
    int status;
    if (argc < 4) errx(125, "wanted LOWER SCRATCH COMMAND");
    must(unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS), "unshare");
    must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "make mounts private");
    must(mount("tmpfs", argv[2], "tmpfs", 0, "size=64m"), "mount tmpfs");
    must(chdir(argv[2]), "chdir");
    must(mkdir("upper", 0755), "mkdir");
    must(mkdir("work", 0755), "mkdir");
    must(mkdir("root", 0755), "mkdir");
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s/upper,workdir=%s/work", argv[1], argv[2], argv[2]);
    must(mount("overlay", "root", "overlay", 0, options), "mount overlay");
    pid_t child = vfork();
    must(child, "fork");
    if (child == 0) {
        must(chroot("root"), "chroot");
        must(chdir("/"), "chdir");
        must(mount("proc", "/proc", "proc", 0, NULL), "mount proc");
        must(setgid(AGENT), "setgid");
        must(setuid(AGENT), "setuid");
        execvp(argv[3], argv + 3);
        err(125, "exec %s", argv[3]);
    }
    must(waitpid(child, &status, 0), "wait");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 125;
}
