//! What the machine does once its kernel is up: `init`, a script of busybox's
//! shell, runs each case and writes what came out on the console between marks.
//! It judges nothing.

use std::fmt::Write;

use super::cases::Case;
use super::modules::{Module, in_order};

/// Before a section's output: the mark and its name.
pub const BEGIN: &str = "@@begin ";
/// Between what was written to standard output and to standard error.
pub const SAID: &str = "@@said";
/// Before what the program told and the kernel counted.
pub const TOLD: &str = "@@told";
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
ifconfig lo 127.0.0.1 up
ulimit -l unlimited
section() {
    name=$1
    shift
    counts >/tmp/counts
    "$@" >/tmp/out 2>/tmp/err
    code=$?
    counts >>/tmp/counts
    echo "@@begin $name"
    cat /tmp/out
    echo "@@said"
    cat /tmp/err
    echo "@@told"
    cat /tmp/ready /tmp/counts 2>/dev/null
    echo "@@end $code"
}
counts() {
    for device in /sys/block/*; do
        [ ! -e "$device/stat" ] || echo "counted ${device##*/}" $(cat "$device/stat")
    done
}
wait_for() {
    tries=0
    until [ -e "$1" ] || [ $tries = 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
}
begin() {
    environment=$1
    program=$2
    line=$3
    shift 3
    rm -f /tmp/in /tmp/ready
    mkfifo /tmp/in
    env $environment "$program" "$@" </tmp/in >/tmp/ready &
    PID=$!
    feed >/tmp/in &
    FEED=$!
    tries=0
    until grep -q ready /tmp/ready || [ $tries = 300 ]; do
        kill -0 $PID || break
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
    rm -f /tmp/ready
}
section release uname -r
section doctor goprof doctor --json
"#;

/// The script.
pub fn init(cases: &[&Case], modules: &[Module]) -> String {
    let mut script = HEAD.to_owned();
    for case in cases {
        let Case {
            name,
            program,
            arguments,
            environment,
            feed,
            command,
            setting,
            ..
        } = case;
        for module in case.modules {
            load(&mut script, module, modules);
        }
        let _ = writeln!(script, "{setting}");
        if command.contains("$PID") {
            let _ = writeln!(
                script,
                "begin '{environment}' {program} '{feed}' {arguments}"
            );
            let _ = writeln!(script, "section '{name}' goprof {command}");
            script.push_str("finish >/dev/null 2>&1\n");
        } else {
            let _ = writeln!(
                script,
                "section '{name}' env {environment} goprof {command} -- {program} {arguments}"
            );
        }
        if let Some(last) = case.modules.last() {
            let _ = writeln!(script, "rmmod {}", name_of(last));
        }
    }
    script.push_str("sync\npoweroff -f\n");
    script
}

/// The name of a module that is given with its parameters.
pub fn name_of(module: &str) -> &str {
    module.split(' ').next().unwrap_or_default()
}

/// Has the kernel load a module, given with its parameters, and what it needs before.
fn load(script: &mut String, module: &str, modules: &[Module]) {
    let last = name_of(module);
    for Module { name, .. } in in_order(modules, last) {
        let given = if name == last { module } else { name };
        let parameters = given.strip_prefix(name.as_str()).unwrap_or_default();
        let _ = writeln!(
            script,
            "grep -q '^{name} ' /proc/modules || insmod /lib/{name}.ko{parameters}"
        );
    }
}
