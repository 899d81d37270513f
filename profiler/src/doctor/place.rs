//! Place: where goprof runs, namespaces and mounts. Reads `/proc` of this
//! process alone.

use std::{fs, io, path::Path};

use super::Check;

/// Inode of the pid namespace that the machine starts with
/// (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// What `/proc/self/status` says of rights.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OwnStatus {
    pub(super) uid: u32,
    /// The capabilities in force, by bit.
    pub(super) effective: u64,
    /// 0 none, 1 strict, 2 a filter.
    pub(super) seccomp: u32,
}

impl OwnStatus {
    pub(super) fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let field = |key: &str| status_field(text, key);
        Self {
            // The second number is the effective one.
            uid: field("Uid")
                .and_then(|ids| ids.split_whitespace().nth(1)?.parse().ok())
                .unwrap_or(u32::MAX),
            effective: field("CapEff")
                .and_then(|mask| u64::from_str_radix(mask, 16).ok())
                .unwrap_or(0),
            seccomp: field("Seccomp")
                .and_then(|mode| mode.parse().ok())
                .unwrap_or(0),
        }
    }
}

/// The value of `key` in the text of a `/proc/PID/status`.
pub(super) fn status_field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name == key).then(|| value.trim())
    })
}

pub(super) fn proc() -> Check {
    let own = fs::read_link("/proc/self")
        .ok()
        .and_then(|link| link.to_str()?.parse::<u32>().ok());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    judge_proc(own == Some(std::process::id()), &mounts)
}

fn judge_proc(shows_self: bool, mountinfo: &str) -> Check {
    let check = |found: &str| Check::ok("proc", "/proc", found);
    if !shows_self {
        return check("not mounted, or that of another pid namespace")
            .fail("mount it: mount -t proc proc /proc");
    }
    let options = proc_options(mountinfo).unwrap_or_default();
    let has = |wanted: &[&str]| options.split(',').any(|option| wanted.contains(&option));
    if has(&["subset=pid"]) {
        return check("mounted with subset=pid: kernel settings and names are hidden")
            .warn("mount it without subset=pid for goprof");
    }
    if has(&[
        "hidepid=1",
        "hidepid=2",
        "hidepid=noaccess",
        "hidepid=invisible",
    ]) {
        return check("mounted with hidepid: without CAP_SYS_PTRACE other users' are hidden");
    }
    if has(&["hidepid=4", "hidepid=ptraceable"]) {
        return check("mounted with hidepid=ptraceable: shows what CAP_SYS_PTRACE lets see");
    }
    check("mounted, shows every process")
}

/// The options of what is mounted on `/proc` last: of the fields after the
/// separator ` - ` the third (proc(5)).
fn proc_options(mountinfo: &str) -> Option<&str> {
    mountinfo
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some("/proc"))?
        .split_once(" - ")?
        .1
        .split(' ')
        .nth(2)
}

pub(super) fn pid_namespace() -> Check {
    let link = fs::read_link("/proc/self/ns/pid").ok();
    judge_pid_namespace(link.as_deref().and_then(Path::to_str))
}

fn judge_pid_namespace(link: Option<&str>) -> Check {
    let check = |found: &str| Check::ok("pid_namespace", "pid namespace", found);
    match link {
        Some(FIRST_PID_NAMESPACE) => check("the machine's own"),
        Some(_) => check("a container's: its pids are not those that the kernel samples by").fail(
            "give goprof the machine's pid namespace: --pid=host (Docker, Podman), \
             hostPID: true (Kubernetes)",
        ),
        None => check("cannot be told").warn("mount /proc with its ns folders"),
    }
}

pub(super) fn tracefs() -> Check {
    let folders = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let found = folders
        .into_iter()
        .map(|folder| fs::metadata(Path::new(folder).join("events")).map(|_| folder))
        .reduce(|first, second| match second {
            // Where neither is there, the first says why.
            Ok(_) if first.is_err() => second,
            _ => first,
        });
    judge_tracefs(found.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into())))
}

fn judge_tracefs(found: io::Result<&str>) -> Check {
    let check = |found: &str| Check::ok("tracefs", "tracefs", found);
    match found {
        Ok(folder) => check(folder),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            check("closed to this user; only -e io needs it").warn("run goprof as root")
        }
        Err(_) => check("not mounted; only -e io needs it")
            .warn("mount -t tracefs tracefs /sys/kernel/tracing"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn reads_what_status_says_of_rights() {
        let text = "Name:\tgoprof\nUid:\t1000\t0\t0\t0\nCapPrm:\t0\n\
                    CapEff:\t000001fffeffffff\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        assert_eq!(
            OwnStatus::parse(text),
            OwnStatus {
                uid: 0,
                effective: 0x1ff_feff_ffff,
                seccomp: 2
            }
        );
        assert_eq!(OwnStatus::parse("").effective, 0);
    }

    #[test]
    fn hidepid_is_noticed() {
        let line = |options: &str| {
            format!(
                "21 26 0:19 / /sys rw - sysfs sysfs rw\n\
                 22 27 0:21 / /proc rw,relatime shared:5 - proc proc {options}\n"
            )
        };
        let found = |options: &str| judge_proc(true, &line(options)).found;
        assert_eq!(found("rw"), "mounted, shows every process");
        assert!(found("rw,hidepid=2").contains("hidepid"));
        assert!(found("rw,hidepid=invisible").contains("hidepid"));
        assert!(found("rw,gid=4,hidepid=ptraceable").contains("ptraceable"));
        assert_eq!(
            judge_proc(true, &line("rw,subset=pid")).status,
            Status::Warn
        );
        assert_eq!(judge_proc(false, &line("rw")).status, Status::Fail);
    }

    #[test]
    fn the_last_mount_on_proc_counts() {
        let text = "1 2 0:1 / /proc rw - proc proc rw\n3 4 0:2 / /proc rw - proc none rw,hidepid=1";
        assert_eq!(proc_options(text), Some("rw,hidepid=1"));
        assert_eq!(proc_options("nonsense"), None);
    }

    #[test]
    fn a_container_has_other_pids() {
        assert_eq!(
            judge_pid_namespace(Some("pid:[4026531836]")).status,
            Status::Ok
        );
        let other = judge_pid_namespace(Some("pid:[4026532288]"));
        assert_eq!(other.status, Status::Fail);
        assert!(other.remedy.unwrap().contains("hostPID"));
        assert_eq!(judge_pid_namespace(None).status, Status::Warn);
    }

    #[test]
    fn cpu_profiles_do_without_tracefs() {
        let remedy = |kind: io::ErrorKind| judge_tracefs(Err(kind.into())).remedy.unwrap();
        assert!(remedy(io::ErrorKind::NotFound).starts_with("mount"));
        assert!(remedy(io::ErrorKind::PermissionDenied).contains("root"));
        assert_eq!(judge_tracefs(Ok("/t")).status, Status::Ok);
    }
}
