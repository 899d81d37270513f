//! What the machine does once its kernel is up: `init`, a script of busybox's
//! shell, runs each case and writes what came out on the console between marks.
//! It judges nothing.

use std::fmt::Write;

use super::cases::Case;

/// Before a section's output: the mark and its name.
pub const BEGIN: &str = "@@begin ";
/// Between what was written to standard output and to standard error.
pub const SAID: &str = "@@said";
/// After a section: the mark and the exit code.
pub const END: &str = "@@end ";

/// The section that says what the kernel is.
pub const RELEASE: &str = "release";
/// The section of `goprof doctor --json`.
pub const DOCTOR: &str = "doctor";

const HEAD: &str = r#"#!/bin/sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tracefs tracefs /sys/kernel/tracing
mount -t cgroup2 cgroup /sys/fs/cgroup
dmesg -n 1
ulimit -l unlimited
section() {
    name=$1
    shift
    "$@" >/tmp/out 2>/tmp/err
    code=$?
    echo "@@begin $name"
    cat /tmp/out
    echo "@@said"
    cat /tmp/err
    echo "@@end $code"
}
begin() {
    program=$1
    line=$2
    shift 2
    rm -f /tmp/in /tmp/ready
    mkfifo /tmp/in
    "$program" "$@" </tmp/in >/tmp/ready &
    PID=$!
    feed >/tmp/in &
    FEED=$!
    tries=0
    until grep -q ready /tmp/ready || [ $tries = 300 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
}
feed() {
    while sleep 0.2; do
        [ -z "$line" ] || echo "$line"
    done
}
finish() {
    kill -9 $FEED $PID
    wait
}
section release uname -r
section doctor goprof doctor --json
"#;

/// The script.
pub fn init(cases: &[&Case]) -> String {
    let mut script = HEAD.to_owned();
    for case in cases {
        let Case {
            name,
            program,
            arguments,
            feed,
            command,
            ..
        } = case;
        if command.contains("$PID") {
            let _ = writeln!(script, "begin {program} '{feed}' {arguments}");
            let _ = writeln!(script, "section '{name}' goprof {command}");
            script.push_str("finish >/dev/null 2>&1\n");
        } else {
            let _ = writeln!(
                script,
                "section '{name}' goprof {command} -- {program} {arguments}"
            );
        }
    }
    script.push_str("sync\npoweroff -f\n");
    script
}
