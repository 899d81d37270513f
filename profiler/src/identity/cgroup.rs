//! Which container, pod and systemd unit a process is in, by the text of its
//! `/proc/PID/cgroup`. Pure functions over text that a target may have chosen:
//! whoever may make cgroups may name them as they like.

/// The containers that are kept of a path: a container in a container in a
/// Kubernetes node that is itself a container needs three.
const MAX_CONTAINERS: usize = 4;
/// Lines and parts of a path that are looked at; the kernel has at most 16
/// hierarchies, and a path has at most 4,096 bytes.
const MAX_LINES: usize = 32;
const MAX_PARTS: usize = 256;
/// Digits of a container id.
const ID_DIGITS: usize = 64;
/// Digits before the dash in the ids of Amazon's Fargate.
const TASK_DIGITS: usize = 32;

/// What runs a container, as far as the cgroup's name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// containerd, started by the kubelet or by nerdctl.
    Containerd,
    /// CRI-O.
    CriO,
    /// Docker.
    Docker,
    /// Podman.
    Podman,
    /// The name says only the id: cgroups without systemd.
    Unknown,
}

/// A container by its cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// What runs it.
    pub runtime: Runtime,
    /// Its id, as the runtime has it.
    pub id: String,
    /// Whether the name is one that only the kubelet's runtimes give.
    pub is_in_pod: bool,
}

/// Where a process is among cgroups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// The containers it is in, the innermost first; at most four.
    pub containers: Vec<Container>,
    /// The pod's uid as the kubelet named the cgroup: of a static pod the hash
    /// of its manifest, not the uid in the API.
    pub pod_uid: Option<String>,
    /// The systemd unit (`foo.service`) of a process in no container.
    pub unit: Option<String>,
}

impl Cgroup {
    /// Reads `/proc/PID/cgroup` of cgroup v1, v2 or both. `own` is the absolute
    /// path of the reader's own cgroup, to which paths are relative in a cgroup
    /// namespace; empty in the namespace of the host or where it is not known.
    pub fn parse(text: &[u8], own: &str) -> Self {
        let mut lines: Vec<(u8, &[u8])> = text
            .split(|byte| *byte == b'\n')
            .take(MAX_LINES)
            .filter_map(split_line)
            .map(|(controllers, path)| (rank(controllers), path))
            .collect();
        lines.sort_by_key(|(rank, _)| *rank);
        let mut best = Self::default();
        for (rank, path) in lines {
            let path = String::from_utf8_lossy(path);
            let relative = rank == UNIFIED && !own.is_empty();
            let found = Self::of_path(&if relative {
                resolve(own, &path)
            } else {
                path.into_owned()
            });
            if best.containers.is_empty() && !found.containers.is_empty() {
                return found;
            }
            best.pod_uid = best.pod_uid.or(found.pod_uid);
            best.unit = best.unit.or(found.unit);
        }
        best
    }

    /// Reads the path of a cgroup below the root of its hierarchy.
    pub fn of_path(path: &str) -> Self {
        let mut cgroup = Self::default();
        let mut before = "";
        // `SLICE:cri-containerd:ID` is a slice for systemd that a runtime
        // without systemd took for a name.
        for part in path.split(['/', ':']).take(MAX_PARTS) {
            if let Some(uid) = pod_uid(part) {
                cgroup.pod_uid = Some(uid);
            } else if let Some(container) = container(part, before) {
                cgroup.enter(container);
            } else if is_unit(part) {
                cgroup.unit = Some(part.to_owned());
            }
            before = part;
        }
        if !cgroup.containers.is_empty() {
            // A unit above is the runtime's, one below is of the container.
            cgroup.unit = None;
        }
        cgroup
    }

    /// The container it is in.
    pub fn container(&self) -> Option<&Container> {
        self.containers.first()
    }

    /// Whether Kubernetes should know it.
    pub fn is_in_pod(&self) -> bool {
        self.pod_uid.is_some() || self.containers.iter().any(|container| container.is_in_pod)
    }

    fn enter(&mut self, container: Container) {
        let inner = self.containers.first();
        if inner.is_none_or(|inner| inner.id != container.id) {
            self.containers.insert(0, container);
            self.containers.truncate(MAX_CONTAINERS);
        }
    }
}

/// The order in which lines are believed: cgroup v2 and what systemd manages
/// have every process in its place; other hierarchies may be left alone.
const UNIFIED: u8 = 0;

fn rank(controllers: &[u8]) -> u8 {
    match controllers {
        b"" => UNIFIED,
        b"name=systemd" => 1,
        _ => 2,
    }
}

/// Controllers and path of `ID:CONTROLLERS:PATH`.
fn split_line(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut fields = line.splitn(3, |byte| *byte == b':');
    fields.next()?;
    Some((fields.next()?, fields.next()?))
}

/// A path that is relative to `own`, as an absolute one.
fn resolve(own: &str, path: &str) -> String {
    let mut parts: Vec<&str> = own.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/').take(MAX_PARTS) {
        match part {
            "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The pod's uid in `pod<uid>` (cgroupfs) or `…-pod<uid>.slice` (systemd, which
/// takes a dash for a level and so gets underscores).
fn pod_uid(part: &str) -> Option<String> {
    let uid = match part.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod")?.1,
        None => part.strip_prefix("pod")?,
    };
    let is_uid = (TASK_DIGITS..=TASK_DIGITS + 4).contains(&uid.len())
        && uid
            .bytes()
            .all(|byte| is_digit(byte) || matches!(byte, b'-' | b'_'));
    is_uid.then(|| uid.replace('_', "-"))
}

/// The container that a part of a path stands for; `before` is the part above.
fn container(part: &str, before: &str) -> Option<Container> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    let Some((prefix, id)) = split_id(name) else {
        return is_task(part).then(|| Container {
            runtime: Runtime::Unknown,
            id: part.to_owned(),
            is_in_pod: false,
        });
    };
    // Without systemd the runtime's name may be the part above.
    let by = if prefix.is_empty() { before } else { prefix };
    let runtime = match by {
        "docker" => Runtime::Docker,
        "cri-containerd" | "nerdctl" => Runtime::Containerd,
        "crio" => Runtime::CriO,
        "libpod" | "libpod_parent" => Runtime::Podman,
        // The monitor of a container, which is not in it.
        "crio-conmon" | "libpod-conmon" => return None,
        _ => Runtime::Unknown,
    };
    Some(Container {
        runtime,
        id: id.to_owned(),
        is_in_pod: matches!(by, "cri-containerd" | "crio"),
    })
}

/// `PREFIX-ID` or `ID`.
fn split_id(name: &str) -> Option<(&str, &str)> {
    let (prefix, id) = name.split_at_checked(name.len().checked_sub(ID_DIGITS)?)?;
    let prefix = match prefix {
        "" => "",
        prefix => prefix.strip_suffix('-')?,
    };
    id.bytes().all(is_digit).then_some((prefix, id))
}

/// Whether it is `<32 digits>-<number>`, as on Amazon's Fargate.
fn is_task(part: &str) -> bool {
    let Some((task, number)) = part.split_once('-') else {
        return false;
    };
    task.len() == TASK_DIGITS
        && task.bytes().all(is_digit)
        && (1..=20).contains(&number.len())
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether it is a service of systemd, and not a user's whole manager.
fn is_unit(part: &str) -> bool {
    part.strip_suffix(".service")
        .is_some_and(|name| !name.is_empty() && !name.starts_with("user@"))
}

/// A digit of an id: runtimes write lower case.
fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
