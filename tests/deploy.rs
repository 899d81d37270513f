//! What `deploy/` holds, read by the tools that operators read it with, held against
//! what goprof takes, does and exposes, and run where this machine can run it.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

#[path = "deploy/alerts.rs"]
mod alerts;
#[path = "deploy/dashboards.rs"]
mod dashboards;
#[path = "deploy/image.rs"]
mod image;
#[path = "deploy/manifests.rs"]
mod manifests;
#[path = "deploy/network.rs"]
mod network;
#[path = "deploy/pod.rs"]
mod pod;
#[path = "deploy/tools.rs"]
mod tools;
#[path = "deploy/unit.rs"]
mod unit;

use goprof_tests::goprof;
use tools::{arg, deployed};

#[test]
fn the_example_configuration_is_one() {
    let file = deployed("goprof.toml");
    let args = ["agent", "--config", arg(&file), "--print-config"];
    let printed = goprof::run(&args).succeeded();
    let config: toml::Table = toml::from_str(printed.text()).expect("TOML");
    assert_eq!(config["store"]["url"].as_str(), Some("s3://goprof"));
    assert_eq!(config["rules"].as_array().map(Vec::len), Some(2));
    // What the unit lets it have is twice what it means to hold.
    assert_eq!(config["memory_limit"].as_str(), Some("128MiB"));
    let unit = tools::text("systemd/goprof.service");
    assert!(unit.contains("\nMemoryMax=256M\n"));
}
