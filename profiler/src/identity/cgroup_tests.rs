//! Shapes of `/proc/PID/cgroup` as runtimes write them, and hostile ones.

use super::*;

const A: &str = "3f1c2a0e9b8d7c6f5a4e3d2c1b0a99887766554433221100ffeeddccbbaa9988";
const B: &str = "b0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecf";

fn filled(text: &str) -> String {
    text.replace("AAA", A).replace("BBB", B)
}

/// What is found: containers from the inside out, `pod UID`, `unit NAME`.
#[track_caller]
fn check(text: &str, expected: &str) {
    check_within("", text, expected);
}

#[track_caller]
fn check_within(own: &str, text: &str, expected: &str) {
    let found = Cgroup::parse(filled(text).as_bytes(), &filled(own));
    let mut said: Vec<String> = found
        .containers
        .iter()
        .map(|container| format!("{:?} {}", container.runtime, container.id))
        .collect();
    said.extend(found.pod_uid.map(|uid| format!("pod {uid}")));
    said.extend(found.unit.map(|unit| format!("unit {unit}")));
    assert_eq!(said.join(", "), filled(expected), "{text}");
}

const UID: &str = "7f2c9a44-0d1e-4b6a-9a57-2b1f0c8e6d31";

#[test]
fn pods_under_systemd() {
    let slice = "0::/kubepods.slice/kubepods-burstable.slice/\
                 kubepods-burstable-pod7f2c9a44_0d1e_4b6a_9a57_2b1f0c8e6d31.slice";
    let expected = format!(", pod {UID}");
    check(
        &format!("{slice}/cri-containerd-AAA.scope\n"),
        &format!("Containerd AAA{expected}"),
    );
    check(
        &format!("{slice}/crio-AAA.scope"),
        &format!("CriO AAA{expected}"),
    );
    check(
        &format!("{slice}/crio-AAA.scope/container"),
        &format!("CriO AAA{expected}"),
    );
    check(
        &format!("{slice}/docker-AAA.scope"),
        &format!("Docker AAA{expected}"),
    );
    // Guaranteed pods have no class; static ones the hash of their manifest.
    check(
        "0::/kubepods.slice/kubepods-pod3a1c5e7f9b2d4c6e8f0a1b2c3d4e5f60.slice/cri-containerd-AAA.scope",
        "Containerd AAA, pod 3a1c5e7f9b2d4c6e8f0a1b2c3d4e5f60",
    );
    // systemd in the container.
    check(
        &format!("{slice}/cri-containerd-AAA.scope/system.slice/nginx.service"),
        &format!("Containerd AAA{expected}"),
    );
    // The monitor is in the pod, but in no container.
    check(
        &format!("{slice}/crio-conmon-AAA.scope"),
        &format!("pod {UID}"),
    );
}

#[test]
fn pods_under_cgroupfs() {
    let pod = format!("pod{UID}");
    check(
        &format!("0::/kubepods/burstable/{pod}/AAA"),
        &format!("Unknown AAA, pod {UID}"),
    );
    check(
        &format!("0::/kubepods/{pod}/crio-AAA"),
        &format!("CriO AAA, pod {UID}"),
    );
    // The runtime takes systemd's name as it stands.
    check(
        "0::/system.slice/containerd.service/kubepods-besteffort-\
         pod7f2c9a44_0d1e_4b6a_9a57_2b1f0c8e6d31.slice:cri-containerd:AAA",
        &format!("Containerd AAA, pod {UID}"),
    );
    check(
        &format!(
            "11:cpu,cpuacct:/kubepods/besteffort/{pod}/AAA\n\
             2:freezer:/\n1:name=systemd:/kubepods/besteffort/{pod}/AAA\n"
        ),
        &format!("Unknown AAA, pod {UID}"),
    );
}

#[test]
fn containers_in_containers() {
    // kind: a node that is a container of Docker.
    check(
        "0::/docker/BBB/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/\
         kubelet-kubepods-besteffort-pod7f2c9a44_0d1e_4b6a_9a57_2b1f0c8e6d31.slice/\
         cri-containerd-AAA.scope",
        &format!("Containerd AAA, Docker BBB, pod {UID}"),
    );
    check(
        "0::/system.slice/docker-BBB.scope/kubelet.slice/kubelet.service",
        "Docker BBB",
    );
    // Docker in Docker, and Docker in a pod.
    check("0::/docker/BBB/docker/AAA", "Docker AAA, Docker BBB");
    check(
        &format!("0::/kubepods/burstable/pod{UID}/BBB/docker/AAA"),
        &format!("Docker AAA, Unknown BBB, pod {UID}"),
    );
}

#[test]
fn containers_without_kubernetes() {
    check("0::/system.slice/docker-AAA.scope", "Docker AAA");
    check(
        "4:memory:/docker/AAA\n1:name=systemd:/docker/AAA",
        "Docker AAA",
    );
    check("0::/machine.slice/libpod-AAA.scope", "Podman AAA");
    check("0::/machine.slice/libpod-AAA.scope/container", "Podman AAA");
    check("0::/machine.slice/libpod-conmon-AAA.scope", "");
    check("0::/libpod_parent/libpod-AAA", "Podman AAA");
    check(
        "0::/machine.slice/machine-libpod_pod_BBB.slice/libpod-AAA.scope/container",
        "Podman AAA",
    );
    check(
        "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-AAA.scope/container",
        "Podman AAA",
    );
    check("0::/system.slice/nerdctl-AAA.scope", "Containerd AAA");
    check("0::/default/AAA", "Unknown AAA");
    check("0::/AAA", "Unknown AAA");
    check(
        "9:cpu:/ecs/cluster/0123456789abcdef0123456789abcdef/0123456789abcdef0123456789abcdef-1628093012",
        "Unknown 0123456789abcdef0123456789abcdef-1628093012",
    );
}

#[test]
fn units_of_systemd() {
    check("0::/system.slice/shop.service", "unit shop.service");
    check("0::/system.slice/shop.service/worker", "unit shop.service");
    check(
        "0::/system.slice/system-getty.slice/getty@tty1.service",
        "unit getty@tty1.service",
    );
    check(
        "0::/user.slice/user-1000.slice/user@1000.service/app.slice/shop.service",
        "unit shop.service",
    );
    check(
        "0::/user.slice/user-1000.slice/user@1000.service/init.scope",
        "",
    );
    check("0::/user.slice/user-1000.slice/session-3.scope", "");
    check("0::/init.scope", "");
    // v1, where only systemd's own hierarchy knows; and both versions.
    check(
        "12:pids:/\n3:cpu,cpuacct:/\n1:name=systemd:/system.slice/shop.service\n",
        "unit shop.service",
    );
    check(
        "5:memory:/system.slice/other.service\n1:name=systemd:/system.slice/shop.service\n\
         0::/system.slice/shop.service\n",
        "unit shop.service",
    );
}

#[test]
fn mixed_hierarchies() {
    // Any hierarchy may be the one that knows the container.
    check(
        "9:name=systemd:/\n4:memory:/docker/AAA\n0::/\n",
        "Docker AAA",
    );
    check(
        "1:name=systemd:/system.slice/shop.service\n4:memory:/docker/AAA\n0::/\n",
        "Docker AAA",
    );
    // Controllers may be named and mounted together in any way.
    check("6:net_cls,net_prio:/docker/AAA\n", "Docker AAA");
    check("4:memory:/job/b8f25a08750b658fe7851e19108526c7\n0::/\n", "");
    check("0::/\n", "");
    check("", "");
}

#[test]
fn cgroup_namespaces() {
    let own = "/kubepods.slice/kubepods-pod7f2c9a44_0d1e_4b6a_9a57_2b1f0c8e6d31.slice/\
               cri-containerd-BBB.scope";
    let pod = format!("pod {UID}");
    // The reader itself, a neighbour in its pod, another pod.
    check_within(own, "0::/", &format!("Containerd BBB, {pod}"));
    check_within(own, "0::/worker", &format!("Containerd BBB, {pod}"));
    check_within(
        own,
        "0::/../cri-containerd-AAA.scope",
        &format!("Containerd AAA, {pod}"),
    );
    check_within(
        own,
        "0::/../../kubepods-pod00112233_4455_6677_8899_aabbccddeeff.slice/cri-containerd-AAA.scope",
        "Containerd AAA, pod 00112233-4455-6677-8899-aabbccddeeff",
    );
    check_within(
        own,
        "0::/../../../system.slice/kubelet.service",
        "unit kubelet.service",
    );
    check_within(own, "0::/../../../../../..", "");
    // Where the own cgroup is not known, what is relative still names much.
    check("0::/../cri-containerd-AAA.scope", "Containerd AAA");
    check(
        "0::/../../../system.slice/shop.service",
        "unit shop.service",
    );
    // v1 knows no own cgroup.
    check_within("/docker/BBB", "4:memory:/docker/AAA", "Docker AAA");
}

#[test]
fn who_is_in_a_pod() {
    for (path, expected) in [
        (
            "/kubepods/burstable/pod7f2c9a44-0d1e-4b6a-9a57-2b1f0c8e6d31/AAA",
            true,
        ),
        ("/../cri-containerd-AAA.scope", true),
        ("/../crio-AAA.scope", true),
        ("/system.slice/docker-AAA.scope", false),
        ("/system.slice/nerdctl-AAA.scope", false),
        ("/AAA", false),
    ] {
        assert_eq!(
            Cgroup::of_path(&filled(path)).is_in_pod(),
            expected,
            "{path}"
        );
    }
}

#[test]
fn names_that_only_look_alike_are_not_taken() {
    for path in [
        "/docker/AAA0",
        "/docker/0AAA",
        "/docker/gAAA",
        "/dockerAAA",
        "/docker/3F1C2A0E9B8D7C6F5A4E3D2C1B0A99887766554433221100FFEEDDCCBBAA9988",
        "/podman",
        "/podcast-0123456789abcdef0123456789abcdef",
        "/kubepods-podnothing.slice",
        "/.service",
        "/shop.service.d",
        "/0123456789abcdef0123456789abcdef-",
        "/0123456789abcdef0123456789abcdef-12x",
    ] {
        let found = Cgroup::of_path(&filled(path));
        assert_eq!(found, Cgroup::default(), "{path}");
    }
}

#[test]
fn hostile_text_is_survived_and_bounded() {
    let deep = filled(&"/AAA/BBB".repeat(10_000));
    let found = Cgroup::of_path(&deep);
    assert_eq!(found.containers.len(), MAX_CONTAINERS);
    Cgroup::parse(format!("0::{}", "/..".repeat(100_000)).as_bytes(), "/a/b");
    Cgroup::parse("0::/x\n".repeat(100_000).as_bytes(), "/a");
    Cgroup::parse(&[0xff; 10_000], "/a");
    Cgroup::parse(b":::\n::\n:\n0::\xff\xfe/docker/\xc3\xa4", "");
    // Characters of several bytes wherever a name is cut.
    for lead in 0..4 {
        let name = format!("/{}{}", "x".repeat(lead), "ä".repeat(40));
        assert_eq!(Cgroup::of_path(&name), Cgroup::default());
    }
    // Every shape with bytes changed: found or not, never a panic, and ids are
    // ids. A linear congruential generator keeps failures repeatable.
    let shape = filled(
        "1:name=systemd:/system.slice/shop.service\n0::/../kubepods-burstable-\
         pod7f2c9a44_0d1e_4b6a_9a57_2b1f0c8e6d31.slice/cri-containerd-AAA.scope/container\n",
    );
    let mut state = 1_u64;
    for _ in 0..4_000 {
        let mut bytes = shape.clone().into_bytes();
        for _ in 0..3 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] = (state >> 20) as u8;
        }
        let found = Cgroup::parse(&bytes, "/a/b");
        for container in found.containers {
            assert!(container.id.len() >= TASK_DIGITS && container.id.is_ascii());
        }
    }
}
