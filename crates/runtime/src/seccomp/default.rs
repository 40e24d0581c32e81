//! The default profile: an allow-list that ordinary programs do not notice.
//!
//! Equal in effect to the profile containers get elsewhere: what is not listed fails with EPERM; what
//! needs a capability is listed when the container has it; `clone` must not make namespaces; `clone3`,
//! whose arguments a filter cannot see, does not exist (ENOSYS) so that C libraries use `clone`.
//! Different: 32-bit programs are not served (their calls have other numbers).

use std::collections::BTreeSet;

use super::{Compare, Rule, action, table};
use crate::caps::Capability;

/// What happens to calls that are not listed.
pub const OTHERWISE: u32 = action::ERRNO | libc::EPERM as u32;

const ALWAYS: &str = "
    accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown
    clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range
    creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
    epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2
    fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync
    fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex
    futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu
    getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp
    getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname
    getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init
    inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit
    ioctl ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self
    lchown lgetxattr link linkat listen listxattr listxattrat llistxattr lremovexattr lseek lsetxattr
    lstat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod
    mknodat mlock mlock2 mlockall mmap modify_ldt mprotect mq_getsetattr mq_notify mq_open
    mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock
    munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open
    pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv
    preadv2 prlimit64 process_mrelease pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink
    readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename
    renameat renameat2 restart_syscall riscv_flush_icache rmdir rseq rt_sigaction rt_sigpending
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg
    sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups
    setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt
    setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
    socketpair splice stat statfs statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill
    time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create
    timerfd_gettime timerfd_settime times tkill truncate umask uname unlink unlinkat uretprobe utime
    utimensat utimes vfork vmsplice wait4 waitid write writev";

/// What a capability adds.
const WITH: &[(&str, &str)] = &[
    ("BPF", "bpf"),
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    ("PERFMON", "perf_event_open"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount \
         mount_setattr move_mount open_tree perf_event_open pivot_root quotactl quotactl_fd \
         setdomainname sethostname setns syslog umount2 unshare",
    ),
    ("SYSLOG", "syslog"),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYS_PACCT", "acct"),
    (
        "SYS_PTRACE",
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev",
    ),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime settimeofday"),
    ("SYS_TTY_CONFIG", "vhangup"),
];

/// Every flag of `clone` that makes a namespace.
const CLONE_NEW: u64 = 0x7e02_0000;
const AF_VSOCK: u64 = 40;
/// Linux, and its variants without address randomization and for 32-bit fields; and the question.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The rules for a process with these capabilities.
pub fn rules(capabilities: &BTreeSet<Capability>) -> Vec<Rule> {
    let has = |name: &str| Capability::named(name).is_some_and(|c| capabilities.contains(&c));
    let with = WITH.iter().filter(|(capability, _)| has(capability));
    let names = ALWAYS
        .split_whitespace()
        .chain(with.flat_map(|(_, names)| names.split_whitespace()));
    let mut rules: Vec<Rule> = names
        .filter_map(table::number)
        .map(|number| Rule {
            number,
            action: action::ALLOW,
            conditions: Vec::new(),
        })
        .collect();
    let mut rule = |name: &str, action: u32, conditions: Vec<(u32, Compare)>| {
        rules.extend(table::number(name).map(|number| Rule {
            number,
            action,
            conditions,
        }));
    };
    rule("socket", action::ALLOW, vec![(0, Compare::NotEqual(AF_VSOCK))]);
    for personality in PERSONALITIES {
        rule("personality", action::ALLOW, vec![(0, Compare::Equal(personality))]);
    }
    if !has("SYS_ADMIN") {
        let no_namespace = Compare::MaskedEqual {
            mask: CLONE_NEW,
            value: 0,
        };
        rule("clone", action::ALLOW, vec![(0, no_namespace)]);
        rule("clone3", action::ERRNO | libc::ENOSYS as u32, Vec::new());
    }
    rules
}
