"""The system calls that a sandbox may make, those it may not, and what their arguments may be.

Default-deny. It is Docker's default profile (github.com/moby/profiles, seccomp/default_linux.go,
Apache-2.0) as that is for a container without capabilities, with fewer calls.
"""

from __future__ import annotations

from dataclasses import dataclass

# Linux's values: this module also runs on hosts with others, where Docker keeps a Linux machine.
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What is not named in this file answers EPERM. Beside what `ABSENT` and `CHECKED` say, Docker's
# profile allows ptrace and process_vm_* (other processes of the sandbox hold its connection),
# unshare, name_to_handle_at, modify_ldt, adjtimex and clock_adjtime, sync and syncfs (which make
# the host write to its disks), and calls that nothing uses.
ALLOWED = _names(
    """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close
    close_range open openat openat2 creat dup dup2 dup3 pipe pipe2 fcntl flock sendfile
    copy_file_range splice tee vmsplice fsync fdatasync sync_file_range truncate ftruncate
    fallocate fadvise64 readahead

    stat lstat fstat newfstatat statx statfs fstatfs access faccessat faccessat2 getdents
    getdents64 readlink readlinkat getcwd chdir fchdir mkdir mkdirat rmdir link linkat symlink
    symlinkat unlink unlinkat rename renameat renameat2 chmod fchmod fchmodat fchmodat2 chown
    lchown fchown fchownat umask utime utimes futimesat utimensat getxattr lgetxattr fgetxattr
    getxattrat setxattr lsetxattr fsetxattr setxattrat listxattr llistxattr flistxattr listxattrat
    removexattr lremovexattr fremovexattr removexattrat inotify_init inotify_init1
    inotify_add_watch inotify_rm_watch

    select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
    epoll_pwait2 eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime
    timerfd_gettime

    bind listen accept accept4 connect shutdown getsockname getpeername getsockopt
    sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg

    mmap munmap mremap mprotect madvise msync mincore brk mlock mlock2 mlockall munlock munlockall
    membarrier pkey_alloc pkey_free pkey_mprotect map_shadow_stack mseal

    fork vfork execve execveat exit exit_group wait4 waitid getpid getppid gettid getpgid getpgrp
    setpgid getsid setsid kill tkill tgkill pidfd_open pidfd_send_signal rt_sigaction
    rt_sigprocmask rt_sigreturn rt_sigpending rt_sigqueueinfo rt_tgsigqueueinfo rt_sigsuspend
    rt_sigtimedwait sigaltstack pause restart_syscall arch_prctl set_tid_address set_robust_list
    get_robust_list futex futex_wait futex_wake futex_waitv futex_requeue rseq uretprobe seccomp
    landlock_create_ruleset landlock_add_rule landlock_restrict_self

    getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid
    setresuid setresgid setfsuid setfsgid setgroups capget capset

    getrlimit setrlimit getrusage getpriority setpriority ioprio_get ioprio_set
    sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam
    sched_getscheduler sched_setscheduler sched_getattr sched_setattr sched_get_priority_max
    sched_get_priority_min sched_rr_get_interval getcpu sysinfo uname times

    time gettimeofday clock_gettime clock_getres nanosleep clock_nanosleep alarm getitimer
    setitimer timer_create timer_settime timer_gettime timer_getoverrun timer_delete getrandom
    """
)

# Answer ENOSYS, as a kernel without them does, so that programs do without them.
# clone3: its flags lie in memory, where a filter cannot see them; C libraries turn to clone.
# memfd_create, System V IPC and message queues: memory that is in no file system and need be in no
#   process, so that only a control group could bound it. /dev/shm, which has a size, serves.
# io_setup: its contexts count against a limit of the whole host (fs.aio-max-nr).
# The rest is young or unused, and some of it tells about the host.
ABSENT = _names(
    """
    clone3

    memfd_create memfd_secret shmget shmat shmctl shmdt semget semop semtimedop semctl msgget
    msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr

    io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents

    cachestat statmount listmount listns lsm_get_self_attr lsm_set_self_attr lsm_list_modules
    process_mrelease file_getattr file_setattr remap_file_pages
    """
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What an argument of a system call may be; where it may not, the call answers `errno`.

    An errno of 0 pretends that the call succeeded.

    Of the argument, counted from 0, the bits of `mask` must be among `values`, or among none of
    them if `refused`. No mask reaches beyond 32 bits because the kernel looks at no more of these
    arguments: a comparison of all 64 would let pass what differs only above (CVE-2019-10063).
    """

    argument: int
    values: tuple[int, ...]
    refused: bool = False
    mask: int = 0xFFFFFFFF
    errno: int = EPERM


_FILE_TYPES = (0, 0o010000, 0o100000, 0o140000)  # regular twice, FIFO, socket; no devices

# Allowed where every check allows it.
CHECKED: dict[str, tuple[Check, ...]] = {
    # No CLONE_NEW*: new namespaces give capabilities, and with them most of the kernel's doors.
    "clone": (Check(argument=0, mask=0x7E020000, values=(0,)),),
    # UNIX, INET, INET6: no netlink, and no vsock, which leads out of a virtual machine. Streams
    # and datagrams. Default protocol, TCP, UDP: the kernel would load a module for any other.
    "socket": (
        Check(argument=0, values=(1, 2, 10), errno=EAFNOSUPPORT),
        Check(argument=1, mask=0xF, values=(1, 2)),
        Check(argument=2, values=(0, 6, 17)),
    ),
    # Only its own: with no processor time left, even the sandbox's first process is killed.
    "prlimit64": (Check(argument=0, values=(0,)),),
    # SO_SNDBUF: megabytes for each socket that are no process's memory. Succeeds without effect, as
    # beyond the kernel's limit; so does what has its number at other levels (TCP_SYNCNT).
    "setsockopt": (Check(argument=2, values=(7,), refused=True, errno=0),),
    "socketpair": (Check(argument=0, values=(1,), errno=EAFNOSUPPORT),),
    "mknod": (Check(argument=1, mask=0o170000, values=_FILE_TYPES),),
    "mknodat": (Check(argument=2, mask=0o170000, values=_FILE_TYPES),),
    # TIOCSTI and TIOCLINUX type into the terminal, TIOCSETD loads line disciplines.
    "ioctl": (Check(argument=1, values=(0x5412, 0x541C, 0x5423), refused=True),),
    "prctl": (Check(argument=0, values=(35,), refused=True),),  # PR_SET_MM
    # Linux and Linux32, both also as 2.6, and the question; address randomization stays.
    "personality": (Check(argument=0, values=(0, 8, 0x20000, 0x20008, 0xFFFFFFFF)),),
}
