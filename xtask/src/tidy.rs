//! `cargo xtask tidy`: the house rules that neither rustfmt nor clippy knows,
//! each as a check over the files git tracks. It changes nothing.

mod pipeline;
mod rules;

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::workspace::Workspace;

/// One breach of a rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// From 1; 0 where it is about the whole file.
    line: usize,
    /// What is wrong, and what to do.
    message: String,
}

impl Finding {
    fn new(line: usize, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { line, message }
    }
}

/// Prints every breach and fails if there is one.
pub fn run(workspace: &Workspace) -> Result<()> {
    let mut git = Command::new("git");
    // With those about to be added: found before the commit, not after.
    git.args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
    ]);
    let listing = command::output(git.current_dir(&workspace.root))?;
    let paths: Vec<&str> = listing.split_terminator('\0').collect();

    let mut breaches = 0;
    let mut report = |path: &str, findings: Vec<Finding>| {
        breaches += findings.len();
        for Finding { line, message } in findings {
            match line {
                0 => println!("{path}: {message}"),
                line => println!("{path}:{line}: {message}"),
            }
        }
    };
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ] {
        if !paths.contains(&document) {
            report(document, vec![Finding::new(0, "is missing: write it")]);
        }
    }
    let mut files = 0;
    for path in paths {
        let file = workspace.root.join(path);
        // Deleted and not yet committed, or a link that leads elsewhere.
        if !file.is_file() {
            continue;
        }
        let bytes = fs::read(&file).with_context(|| format!("read {path}"))?;
        report(path, check(path, &bytes));
        files += 1;
    }
    if breaches > 0 {
        bail!("{breaches} breaches of the house rules");
    }
    println!("tidy: {files} files follow the house rules");
    Ok(())
}

/// Every rule that concerns a file, chosen by its path.
fn check(path: &str, bytes: &[u8]) -> Vec<Finding> {
    let mut findings = rules::private_places(path, bytes);
    findings.extend(rules::size_in_bytes(path, bytes));
    let Ok(text) = std::str::from_utf8(bytes) else {
        return findings;
    };
    if path.ends_with(".rs") {
        findings.extend(rules::opening(text));
        findings.extend(rules::name(path));
        findings.extend(rules::length(text));
        findings.extend(rules::open_ends(text));
        findings.extend(pipeline::check(path, text));
    }
    if path.ends_with("Cargo.toml") {
        findings.extend(rules::inherited_lints(text));
    }
    if path == "ARCHITECTURE.md" {
        findings.extend(rules::architecture(text));
    }
    findings
}
